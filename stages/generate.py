"""Writes SQL for the test split with the base model, or with the base model and its adapter."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from sqlora.generate import generate as complete
from sqlora.jsonl import write_jsonl
from sqlora.model import add_adapter, load_base
from sqlora.params.generate import GenerateParams
from sqlora.publish import publish_file
from sqlora.stage import run_stage
from sqlora.text import read_examples
from sqlora.tokenizer import Tokenizer


def main(model: Path, adapter: Path | None, examples: Path, out: Path, generate: GenerateParams) -> None:
    """Write one JSON object a line to `out`, in the order of the split."""
    base, _ = load_base(model)
    if adapter:
        add_adapter(base, adapter)
    prompts = [example.prompt for example in read_examples(examples)]
    completions = complete(base, Tokenizer(model), prompts, generate, label="adapter" if adapter else "base")
    with publish_file(out) as file:
        write_jsonl(file, ({"index": index} | asdict(completion) for index, completion in enumerate(completions)))


if __name__ == "__main__":
    run_stage(main)
