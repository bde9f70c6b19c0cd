"""Writes the report: scores, loss curve and twenty predictions on one self-contained page."""

from __future__ import annotations

from pathlib import Path

from sqlora.params.lora import LoraParams
from sqlora.params.score import ScoreParams
from sqlora.params.train import TrainParams
from sqlora.publish import publish_file
from sqlora.report.breakdown import read_breakdown
from sqlora.report.cases import make_cases, spread
from sqlora.report.dataset import read_parts
from sqlora.report.page import Run, render_page
from sqlora.report.results import read_loss, read_scores, read_training
from sqlora.score.predictions import read_predictions
from sqlora.stage import run_stage
from sqlora.text import read_examples

CASES = 20


def main(
    dataset: Path,
    base: Path,
    adapter: Path,
    scores: Path,
    breakdown: Path,
    training: Path,
    loss: Path,
    summary: Path,
    out: Path,
    lora: LoraParams,
    train: TrainParams,
    score: ScoreParams,
) -> None:
    """Write the page `out`; `summary` describes the dataset."""
    examples = read_examples(dataset / "test.jsonl")
    predictions = {name: read_predictions(path, len(examples)) for name, path in (("base", base), ("adapter", adapter))}
    chosen = spread(len(examples), CASES)
    run = Run(
        scores=read_scores(scores, len(examples)),
        training=read_training(training),
        loss=read_loss(loss),
        parts=read_parts(summary),
        breakdown=read_breakdown(breakdown),
        lora=lora,
        train=train,
        cases=make_cases(chosen, examples, predictions, dataset / "tables.db", execute_as=score.execute),
    )
    page = render_page(run)
    with publish_file(out) as file:
        file.write_text(page, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    run_stage(main)
