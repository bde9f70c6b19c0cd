"""Asks a model a question about a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlora.ask.query import render_query
from sqlora.ask.source import Source
from sqlora.errors import SqloraError
from sqlora.generate.forward import make_forward
from sqlora.generate.run import generate
from sqlora.model import add_adapter, context_length, load_base
from sqlora.params.generate import GenerateParams
from sqlora.sql.parse import parse_sql
from sqlora.sql.sandbox import Cell
from sqlora.text import render_prompt
from sqlora.tokenizer import Tokenizer

MAX_TOKENS = 200
_PARAMS = GenerateParams(
    batch_size=4,
    max_tokens=MAX_TOKENS,
    constrain="schema+question",
    execution_guided=4,
    workers=1,
    hostfile=None,
    backend="auto",
)


@dataclass(frozen=True)
class Asked:
    """A question about a table; has what decoding needs to know."""

    question: str
    id: str
    header: tuple[str, ...]
    types: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """What the model is given."""
        return render_prompt(self.id, self.header, self.question)


@dataclass(frozen=True)
class Reply:
    """written: by the model; sql: the same for SQLite, or None if it cannot be read; failure: why there are no rows."""

    question: str
    written: str
    sql: str | None
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()
    failure: str | None = None


class Asker:
    """A loaded model.

    Args:
        adapter: None for the base model alone.
    """

    def __init__(self, model: Path, adapter: Path | None) -> None:
        if adapter is not None and not (adapter / "adapters.safetensors").is_file():
            raise SqloraError(
                adapter,
                found="no adapter",
                expected="adapters.safetensors and adapter_config.json",
                next_step="Run dvc repro train, name another folder with --adapter, or ask the base model with --base.",
            )
        base, config = load_base(model)
        if adapter is not None:
            add_adapter(base, adapter)
        self._forward = make_forward(base)
        self._tokenizer = Tokenizer(model)
        self._limit = context_length(config)

    def ask(self, question: str, source: Source) -> Reply:
        """Answer one question.

        Raises:
            SqloraError: an empty question, one that is no text, or one that with its table exceeds the model's context.
        """
        table = source.table
        if not question.strip():
            raise SqloraError("question", found="an empty one", expected="a question", next_step="Ask something.")
        if not question.isprintable() and any("\ud800" <= char <= "\udfff" for char in question):
            raise SqloraError(
                "question",
                found="bytes that are no UTF-8",
                expected="a text in UTF-8",
                next_step="Check the terminal's encoding.",
            )
        asked = Asked(question, table.id, table.header, table.types)
        length = len(self._tokenizer.encode_prompt(asked.prompt))
        if length + _PARAMS.max_tokens > self._limit:
            raise SqloraError(
                "question",
                found=f"{length} tokens with the names of the table's {len(table.header)} columns",
                expected=f"at most {self._limit - _PARAMS.max_tokens}, so that the answer fits the model's context",
                next_step="Shorten the question, or ask about a view with fewer columns.",
            )
        (done,) = generate(self._forward, self._tokenizer, [asked], _PARAMS, label=None, database=source.trial)
        form = parse_sql(done.completion, table.id, table.header, table.types).form if done.stopped else None
        if form is None:
            return Reply(question, done.completion, None, failure="no_stop")
        sql = render_query(form, table, source.name)
        result = source.sandbox.run(sql)
        return Reply(question, done.completion, sql, result.columns, result.rows, result.failure)
