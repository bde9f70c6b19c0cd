"""Writes the fused model as GGUF, for llama.cpp, Ollama and LM Studio.

Not called gguf.py, because Python would then find this script in the place of the package of that name.
"""

from __future__ import annotations

from pathlib import Path

from sqlora.export.gguf import write_gguf
from sqlora.publish import publish_file
from sqlora.stage import run_stage


def main(model: Path, out: Path) -> None:
    """Write the file `out`."""
    with publish_file(out) as file:
        write_gguf(model, file, name=out.stem)


if __name__ == "__main__":
    run_stage(main)
