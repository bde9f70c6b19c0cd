"""Draws train, valid and test examples from WikiSQL's parts and builds the database of their tables."""

from __future__ import annotations

import json
from pathlib import Path

from sqlora.params.split import SplitParams
from sqlora.publish import publish_file, publish_folder
from sqlora.split.describe import chart_rows, describe
from sqlora.split.draw import draw_split, write_split
from sqlora.stage import run_stage
from sqlora.tokenizer import Tokenizer


def main(wikisql: Path, model: Path, out: Path, summary: Path, split: SplitParams) -> None:
    """Write the dataset folder `out` and its description `summary`; `model` is there for its tokenizer."""
    tokenizer = Tokenizer(model)
    drawn = draw_split(wikisql, split)
    with publish_folder(out) as folder, publish_file(summary) as file:
        write_split(folder, drawn)
        description = describe(drawn, folder / "tables.db", tokenizer)
        text = json.dumps(description | {"chart": chart_rows(description)}, indent=2, allow_nan=False)
        file.write_text(text + "\n", encoding="utf-8")
    for name, part in description.items():
        print(
            f"{name}: {part['examples']:,} examples over {part['tables']:,} tables, "
            f"{part['tokens']['mean']:g} tokens on average, at most {part['tokens']['max']:,}; "
            f"{part['degenerate']:,} gold queries return nothing"
        )


if __name__ == "__main__":
    run_stage(main)
