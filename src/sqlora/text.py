"""The text format: what the model is prompted with, what it is to complete, and the file that holds both.

The format is that of mlx-examples/lora (December 2023). Training and generation import this module: keep it small.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlora.errors import SqloraError
from sqlora.jsonl import read_jsonl, write_jsonl
from sqlora.wikisql.form import (
    AGGREGATES,
    OPERATORS,
    LogicalForm,
    Schema,
    read_columns,
    read_form,
    read_texts,
)

_MEND = "Delete the file and run dvc repro to draw the split again."


def render_prompt(table_id: str, header: Sequence[str], question: str) -> str:
    """The text up to and including `A:`.

    The blank after it belongs to the completion: sentencepiece makes one token of a blank and the word behind it, so a
    prompt that ended in the blank would end in a token that training never shows at that place.
    """
    return f"table: {table_id}\ncolumns: {', '.join(header)}\nQ: {question}\nA:"


def render_sql(form: LogicalForm, table: Schema) -> str:
    """The query in the reference's dialect: names and texts neither quoted nor escaped, aggregates without brackets.

    A number stands as the source has it: 243.0 stays 243.0, because that is how the questions say it.
    """
    aggregate = AGGREGATES[form.agg] + " " if form.agg else ""
    sql = f"SELECT {aggregate}{table.header[form.sel]} FROM {table.id}"
    for number, (column, operator, value) in enumerate(form.conds):
        word = "AND" if number else "WHERE"
        shown = str(value) if table.types[column] == "real" else f"'{value}'"
        sql += f" {word} {table.header[column]} {OPERATORS[operator]} {shown}"
    return sql


@dataclass(frozen=True, slots=True)
class Example:
    """One line of artifacts/dataset/{train,valid,test}.jsonl; has what a table must have to be rendered."""

    table_id: str
    question: str
    header: tuple[str, ...]
    types: tuple[str, ...]
    sql: LogicalForm

    @property
    def id(self) -> str:
        """The table's id, under the name that Schema asks for."""
        return self.table_id

    @property
    def prompt(self) -> str:
        """What the model is given; ends at `A:`."""
        return render_prompt(self.table_id, self.header, self.question)

    @property
    def completion(self) -> str:
        """What the model is to write, without EOS; starts with a blank."""
        return " " + render_sql(self.sql, self)

    @property
    def text(self) -> str:
        """Prompt and completion, to be tokenized as one text."""
        return self.prompt + self.completion


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write one JSON object a line, `text` first, so that any loader of {"text": …} reads the file."""
    write_jsonl(
        path,
        (
            {
                "text": example.text,
                "table_id": example.table_id,
                "question": example.question,
                "header": list(example.header),
                "types": list(example.types),
                "sql": example.sql.to_json(),
            }
            for example in examples
        ),
    )


def read_examples(path: Path, *, any_text: bool = False) -> list[Example]:
    """Read what `write_examples` wrote.

    Args:
        any_text: whether the text may be another than the format of today gives.

    Raises:
        SqloraError: naming file and line of a malformed line, or one whose text and logical form disagree; a file
            without any example.
    """
    examples = []
    for where, record in read_jsonl(path, _MEND):
        text, table_id, question = read_texts(where, record, ["text", "table_id", "question"], _MEND)
        header, types = read_columns(where, record, _MEND)
        form = read_form(where, record.get("sql"), len(header), _MEND)
        example = Example(table_id, question, header, types, form)
        # The model is trained on one and scored on the other.
        if text != example.text and not any_text:
            raise SqloraError(
                where,
                found="a text that differs from the logical form beside it",
                expected=f"{example.text!r}",
                next_step=_MEND,
            )
        examples.append(example)
    if not examples:
        raise SqloraError(path, found="no example", expected="at least one", next_step=_MEND)
    return examples
