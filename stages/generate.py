"""Writes SQL for the test split with the base model, or with the base model and its adapter."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from sqlora.errors import SqloraError
from sqlora.generate import generate as complete
from sqlora.jsonl import write_jsonl
from sqlora.model import add_adapter, context_length, load_base
from sqlora.params.generate import GenerateParams
from sqlora.publish import publish_file
from sqlora.stage import run_stage
from sqlora.text import read_examples
from sqlora.tokenizer import Tokenizer


def main(model: Path, adapter: Path | None, examples: Path, out: Path, generate: GenerateParams) -> None:
    """Write one JSON object a line to `out`, in the order of the split."""
    base, config = load_base(model)
    if adapter:
        add_adapter(base, adapter)
    tokenizer = Tokenizer(model)
    prompts = [example.prompt for example in read_examples(examples)]
    check_lengths(examples, prompts, tokenizer, generate.max_tokens, context_length(config))
    completions = complete(base, tokenizer, prompts, generate, label="adapter" if adapter else "base")
    with publish_file(out) as file:
        write_jsonl(file, ({"index": index} | asdict(completion) for index, completion in enumerate(completions)))


def check_lengths(path: Path, prompts: list[str], tokenizer: Tokenizer, max_tokens: int, limit: int) -> None:
    """Refuse what would be computed wrongly: a prompt and answer that together exceed the base model's context."""
    for number, prompt in enumerate(prompts, 1):
        length = len(tokenizer.encode_prompt(prompt))
        if length + max_tokens > limit:
            raise SqloraError(
                f"{path}:{number}",
                found=f"a prompt of {length} tokens, and generate.max_tokens of {max_tokens}",
                expected=f"at most {limit} together, the base model's context",
                next_step="Lower generate.max_tokens in params.yaml, or remove the question's table from the source.",
            )


if __name__ == "__main__":
    run_stage(main)
