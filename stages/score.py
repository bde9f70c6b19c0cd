"""Scores the predictions of base model and adapter on the test split."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from sqlora.publish import publish_file
from sqlora.score import ERROR_COLUMNS, error_rows, judge, read_predictions, summarise
from sqlora.stage import run_stage
from sqlora.text import read_examples


def main(dataset: Path, base: Path, adapter: Path, out: Path, errors: Path) -> None:
    """Write the scores `out` (JSON) and `errors` (CSV), the questions whose result the adapter got wrong."""
    examples = read_examples(dataset / "test.jsonl")
    scores: dict[str, object] = {"examples": len(examples)}
    judged = {}
    for name, path in (("base", base), ("adapter", adapter)):
        predictions = read_predictions(path, len(examples))
        verdicts = judge(examples, predictions, dataset / "tables.db")
        judged[name] = (predictions, verdicts)
        scores[name] = summarise(verdicts, predictions)
    with publish_file(out) as scores_file, publish_file(errors) as errors_file:
        scores_file.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
        with open(errors_file, "w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(ERROR_COLUMNS)
            writer.writerows(error_rows(examples, judged["base"], judged["adapter"]))


if __name__ == "__main__":
    run_stage(main)
