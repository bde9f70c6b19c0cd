"""Convert the base model into a folder that mlx-lm loads as it is."""

from __future__ import annotations

from pathlib import Path

from sqlora.convert.child import convert_in_child
from sqlora.params.convert import ConvertParams
from sqlora.publish import publish_folder
from sqlora.stage import run_stage


def main(source_model: Path, out: Path, convert: ConvertParams) -> None:
    """Write config.json, generation_config.json, sharded safetensors with their index, and the tokenizer."""
    with publish_folder(out) as folder:
        notes = convert_in_child(
            source_model,
            folder,
            dtype=convert.dtype,
            quantize=convert.quantize,
            group_size=convert.group_size,
        )
    for note in notes:
        print(note)


if __name__ == "__main__":
    run_stage(main)
