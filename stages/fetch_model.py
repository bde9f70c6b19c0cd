"""Fetch the base model: its weights, params.json and tokenizer in Mistral's format."""

from __future__ import annotations

from pathlib import Path

from sqlora.fetch.archive import extract
from sqlora.fetch.source import obtain
from sqlora.params.model import ModelParams
from sqlora.publish import publish_folder
from sqlora.stage import run_stage

FILES = ("consolidated.00.pth", "params.json", "tokenizer.model")


def main(demo: Path, out: Path, model: ModelParams) -> None:
    """`demo` is the embedded base model's tar, used when model.source says so."""
    source = obtain("model", model.source, checksum=model.checksum, demo=lambda: demo)
    with publish_folder(out) as folder:
        extract(source, FILES, folder)


if __name__ == "__main__":
    run_stage(main)
