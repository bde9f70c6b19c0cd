"""Fuses the adapter into the base model, for tools that know no adapters."""

from __future__ import annotations

from pathlib import Path

from sqlora.export.fuse import fuse_adapter
from sqlora.publish import publish_folder
from sqlora.stage import run_stage


def main(model: Path, adapter: Path, out: Path) -> None:
    """Write a folder of the same kind as `model`, without quantization."""
    with publish_folder(out) as folder:
        fuse_adapter(model, adapter, folder)


if __name__ == "__main__":
    run_stage(main)
