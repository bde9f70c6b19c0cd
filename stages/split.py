"""Draws train, valid and test examples from WikiSQL's parts and builds the database of their tables."""

from __future__ import annotations

import json
from pathlib import Path

from sqlora.params.split import SplitParams
from sqlora.publish import publish_file, publish_folder
from sqlora.split import describe, draw_split, write_split
from sqlora.stage import run_stage


def main(wikisql: Path, out: Path, summary: Path, split: SplitParams) -> None:
    """Write the dataset folder `out` and its description `summary`."""
    drawn = draw_split(wikisql, split)
    description = describe(drawn)
    with publish_folder(out) as folder, publish_file(summary) as file:
        write_split(folder, drawn)
        file.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    for name, part in description.items():
        print(f"{name}: {part['examples']} examples over {part['tables']} tables")


if __name__ == "__main__":
    run_stage(main)
