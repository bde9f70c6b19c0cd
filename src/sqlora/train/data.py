"""Reads what a training run starts from: the model's config and the examples in its tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sqlora.errors import SqloraError
from sqlora.model import context_length
from sqlora.text import read_examples
from sqlora.tokenizer import Encoded, Tokenizer


def read_config(model: Path) -> dict[str, Any]:
    """config.json of a converted model."""
    path = model / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else f"no readable JSON ({error})"
        step = "Delete the folder and run dvc repro convert." if model.is_dir() else "Name another, or run dvc repro."
        raise SqloraError(path, found=found, expected="a converted model", next_step=step) from None
    return config


def encode(path: Path, tokenizer: Tokenizer, config: dict[str, Any]) -> list[Encoded]:
    """Tokenize a split; an example that the model cannot hold fails the stage."""
    limit = context_length(config)
    encoded = [tokenizer.encode_example(example.prompt, example.completion) for example in read_examples(path)]
    for number, example in enumerate(encoded, 1):
        if len(example.tokens) > limit:
            raise SqloraError(
                f"{path}, line {number}",
                found=f"an example of {len(example.tokens)} tokens",
                expected=f"at most {limit}, the base model's context",
                next_step="Remove the example's table or its longest columns from the data's source.",
            )
    return encoded
