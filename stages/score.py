"""Scores the predictions of base model and adapter on the test split."""

from __future__ import annotations

from pathlib import Path

from sqlora.params.score import ScoreParams
from sqlora.publish import publish_file, publish_folder
from sqlora.score.judge import judge
from sqlora.score.lists import CHANGE_COLUMNS, ERROR_COLUMNS, Judged, change_rows, error_rows
from sqlora.score.official import write_predictions, write_questions
from sqlora.score.predictions import read_predictions
from sqlora.score.summary import BREAKDOWN_COLUMNS, breakdown_rows, chart_rows, compare, headline, summarise
from sqlora.score.tables import write_csv, write_json
from sqlora.stage import run_stage
from sqlora.text import read_examples


def main(
    dataset: Path,
    base: Path,
    adapter: Path,
    out: Path,
    scores: Path,
    details: Path,
    breakdown: Path,
    errors: Path,
    score: ScoreParams,
) -> None:
    """Write the folder `out` (official format, changes), `scores`, `details` (JSON), `breakdown` and `errors` (CSV)."""
    examples = read_examples(dataset / "test.jsonl")
    judged = {}
    for name, path in (("base", base), ("adapter", adapter)):
        predictions = read_predictions(path, len(examples))
        verdicts = judge(examples, predictions, dataset / "tables.db", execute_as=score.execute)
        judged[name] = Judged(predictions, verdicts)
    systems = {name: summarise(examples, system.predictions, system.verdicts) for name, system in judged.items()}
    comparison = compare(judged["base"].verdicts, judged["adapter"].verdicts)
    total = {"examples": len(examples)}
    with (
        publish_folder(out) as folder,
        publish_file(scores) as scores_file,
        publish_file(details) as details_file,
        publish_file(breakdown) as breakdown_file,
        publish_file(errors) as errors_file,
    ):
        write_questions(folder / "test.jsonl", examples)
        for name, system in judged.items():
            write_predictions(folder / f"{name}.jsonl", system.verdicts)
        write_csv(folder / "changes.csv", CHANGE_COLUMNS, change_rows(examples, judged["base"], judged["adapter"]))
        write_json(scores_file, total | {name: headline(system) for name, system in systems.items()})
        write_json(details_file, total | systems | {"comparison": comparison, "chart": chart_rows(systems)})
        rows = (row for name, system in judged.items() for row in breakdown_rows(name, examples, system.verdicts))
        write_csv(breakdown_file, BREAKDOWN_COLUMNS, rows)
        write_csv(errors_file, ERROR_COLUMNS, error_rows(examples, judged["base"], judged["adapter"]))


if __name__ == "__main__":
    run_stage(main)
