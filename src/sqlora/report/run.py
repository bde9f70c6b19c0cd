"""Gathers what the page shows of one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlora.report.breakdown import read_breakdown
from sqlora.report.cases import make_cases, spread
from sqlora.report.dataset import read_parts
from sqlora.report.failures import group_failures
from sqlora.report.page import Run
from sqlora.report.results import read_loss, read_scores, read_training
from sqlora.score.judge import judge
from sqlora.score.predictions import read_predictions
from sqlora.text import read_examples

CASES = 20


@dataclass(frozen=True, slots=True)
class Files:
    """What earlier stages wrote; predictions: system -> file; summary: of the dataset."""

    dataset: Path
    predictions: Mapping[str, Path]
    scores: Path
    breakdown: Path
    training: Path
    loss: Path
    summary: Path


def read_run(files: Files, params: Mapping[str, Any]) -> Run:
    """Read everything, and judge the predictions once more for what details.json does not say.

    Args:
        params: section of params.yaml -> its dataclass.

    Raises:
        SqloraError: for a file that is missing, damaged or of another run.
    """
    examples = read_examples(files.dataset / "test.jsonl")
    predictions = {name: read_predictions(path, len(examples)) for name, path in files.predictions.items()}
    tables, execute_as = files.dataset / "tables.db", params["score"].execute
    verdicts = {name: judge(examples, every, tables, execute_as=execute_as) for name, every in predictions.items()}
    return Run(
        scores=read_scores(files.scores, len(examples)),
        training=read_training(files.training),
        loss=read_loss(files.loss),
        parts=read_parts(files.summary),
        breakdown=read_breakdown(files.breakdown),
        params=params,
        cases=make_cases(spread(len(examples), CASES), examples, predictions, tables, execute_as=execute_as),
        failures=group_failures(examples, predictions, verdicts),
    )
