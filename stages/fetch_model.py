"""Fetch the base model: weights, configuration and tokenizer, in Mistral's or in Hugging Face's format."""

from __future__ import annotations

from pathlib import Path

from sqlora.fetch.model import fetch_model
from sqlora.params.model import ModelParams
from sqlora.publish import publish_folder
from sqlora.stage import run_stage


def main(demo: Path, out: Path, model: ModelParams) -> None:
    """`demo` is the embedded base model's tar, used when model.source says so."""
    with publish_folder(out) as folder:
        fetch_model(model.source, checksum=model.checksum, demo=lambda: demo, folder=folder)


if __name__ == "__main__":
    run_stage(main)
