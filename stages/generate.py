"""Writes SQL for the test split with the base model, or with the base model and its adapter."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from sqlora.distributed.launch import launched
from sqlora.distributed.rank import joined
from sqlora.errors import SqloraError
from sqlora.generate.run import generate as answer
from sqlora.generate.saved import ROOT, drop_older, fingerprint
from sqlora.jsonl import write_jsonl
from sqlora.model import add_adapter, context_length, load_base
from sqlora.params.generate import GenerateParams
from sqlora.publish import publish_file
from sqlora.stage import run_stage
from sqlora.text import Example, read_examples
from sqlora.tokenizer import Tokenizer
from sqlora.train.identity import model_identity


def main(model: Path, adapter: Path | None, examples: Path, tables: Path, out: Path, generate: GenerateParams) -> None:
    """Write one JSON object a line to `out`, in the order of the split."""
    if launched(generate.workers, generate.hostfile, generate.backend):
        return
    with joined() as group:
        base, config = load_base(model)
        if adapter:
            add_adapter(base, adapter)
        tokenizer = Tokenizer(model)
        asked = read_examples(examples)
        check_lengths(examples, asked, tokenizer, generate.max_tokens, context_length(config))
        files = [tokenizer.path, *sorted(adapter.iterdir() if adapter else ()), examples, tables]
        name = fingerprint({"model": model_identity(model), "generate": asdict(generate)}, files)
        keep = ROOT / name / f"rank-{group.rank}"
        if group.rank == 0:
            drop_older(ROOT / name)
        label = "adapter" if adapter else "base"
        completions = answer(base, tokenizer, asked, generate, label=label, database=tables, keep=keep, group=group)
        if group.rank:
            return
        with publish_file(out) as file:
            write_jsonl(file, ({"index": index} | asdict(completion) for index, completion in enumerate(completions)))


def check_lengths(path: Path, questions: list[Example], tokenizer: Tokenizer, max_tokens: int, limit: int) -> None:
    """Refuse what would be computed wrongly: a prompt and answer that together exceed the base model's context."""
    for number, question in enumerate(questions, 1):
        length = len(tokenizer.encode_prompt(question.prompt))
        if length + max_tokens > limit:
            raise SqloraError(
                f"{path}:{number}",
                found=f"a prompt of {length} tokens, and generate.max_tokens of {max_tokens}",
                expected=f"at most {limit} together, the base model's context",
                next_step="Lower generate.max_tokens in params.yaml, or remove the question's table from the source.",
            )


if __name__ == "__main__":
    run_stage(main)
