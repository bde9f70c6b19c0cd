"""Reads what earlier stages left in results/, and says which file is missing, damaged or out of step."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from sqlora.errors import SqloraError

SYSTEMS = ("base", "adapter")
# Measures of score.json -> what people call them, in the order in which they are shown.
MEASURES = {
    "execution_accuracy": "Execution accuracy",
    "logical_form_accuracy": "Logical-form accuracy",
    "valid_sql": "Valid SQL",
    "stopped_at_eos": "Stopped at EOS",
}

_AGAIN = "Delete the file and run dvc repro."
_EXACT = 10_000  # up to so many examples a share of four decimals belongs to one count only


@dataclass(frozen=True, slots=True)
class Score:
    """shares: key of MEASURES -> share from 0 to 1; outcomes: name -> how many predictions had it."""

    shares: Mapping[str, float]
    outcomes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Scores:
    """examples: size of the test split; systems: `base` and `adapter` -> score."""

    examples: int
    systems: Mapping[str, Score]

    def percent(self, system: str, measure: str) -> str:
        """Such as `74.8%`; 0.0% and 100.0% are never the result of rounding."""
        share = self.systems[system].shares[measure]
        if 0 < share < 0.0005:
            return "<0.1%"
        return ">99.9%" if 0.9995 <= share < 1 else f"{share:.1%}"

    def count(self, system: str, measure: str) -> str:
        """How many predictions; marked as about so many where the rounded share leaves that open."""
        count = round(self.systems[system].shares[measure] * self.examples)
        return f"{count:,}" if self.examples <= _EXACT else f"about {count:,}"


@dataclass(frozen=True, slots=True)
class Training:
    """results/training.json; losses in nats per token."""

    iterations: float
    first_valid_loss: float
    final_train_loss: float
    final_valid_loss: float
    tokens_per_second: float
    peak_memory_gb: float
    trainable_parameters: float
    total_parameters: float


@dataclass(frozen=True, slots=True)
class LossPoint:
    """A row of results/loss.csv; a loss that was not measured is None."""

    iteration: int
    train: float | None
    valid: float | None


@dataclass(frozen=True, slots=True)
class Part:
    """How many examples a split has, over how many tables."""

    examples: int
    tables: int


def read_scores(path: Path, examples: int) -> Scores:
    """Read results/score.json.

    Args:
        examples: size of the test split that the scores must be about.

    Raises:
        SqloraError: no such file, a key that is missing or no number, or scores of another split.
    """
    record = _read_json(path)
    size = int(_number(path, record, "examples"))
    if size != examples:
        raise SqloraError(
            path,
            found=f"scores of {size} predictions",
            expected=f"scores of the {examples} test questions in the dataset",
            next_step="Run dvc repro at the top of the repository.",
        )
    return Scores(size, {system: _score(path, _object(path, record, system), system) for system in SYSTEMS})


def read_training(path: Path) -> Training:
    """Read results/training.json; raises SqloraError for a missing file, or a key that is missing or no number."""
    record = _read_json(path)
    # Slots have no defaults, so their names are the keys.
    return Training(**{name: _number(path, record, name) for name in Training.__slots__})


def read_parts(path: Path) -> dict[str, Part]:
    """Read results/dataset.json: name of the split -> its sizes; raises SqloraError as the other readers do."""
    record = _read_json(path)
    parts = {name: _object(path, record, name) for name in ("train", "valid", "test")}
    return {
        name: Part(
            int(_number(path, part, "examples", name + ".")),
            int(_number(path, part, "tables", name + ".")),
        )
        for name, part in parts.items()
    }


def read_loss(path: Path) -> list[LossPoint]:
    """Read results/loss.csv; raises SqloraError, naming the line, for a cell that is no number."""
    points = []
    try:
        with open(path, encoding="utf-8", newline="") as handle:
            rows = csv.DictReader(handle)
            for row in rows:
                where = f"{path}:{rows.line_num}"
                iteration = _cell(where, row, "iteration")
                if iteration is None:
                    _damaged(where, "no iteration", "a number in every row")
                points.append(
                    LossPoint(int(iteration), _cell(where, row, "train_loss"), _cell(where, row, "valid_loss"))
                )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        _unreadable(path, error, "the losses that the train stage writes")
    if not points:
        _damaged(path, "no row", "the losses that the train stage writes")
    return points


def _score(path: Path, record: dict[str, Any], system: str) -> Score:
    shares = {name: _number(path, record, name, system + ".") for name in MEASURES}
    outcomes = _object(path, record, "outcomes")
    counts = {name: int(_number(path, outcomes, name, f"{system}.outcomes.")) for name in outcomes}
    return Score(shares, counts)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        _unreadable(path, error, "a JSON object")
    if not isinstance(value, dict):
        _damaged(path, f"a JSON {type(value).__name__}", "a JSON object")
    return value


def _object(path: Path, record: dict[str, Any], key: str) -> dict[str, Any]:
    value = record.get(key)
    if not isinstance(value, dict):
        _damaged(path, f"{key} {value!r:.80}" if key in record else f"no key {key}", f"an object under {key}")
    return value


def _number(path: Path, record: dict[str, Any], key: str, inside: str = "") -> float:
    value = record.get(key)
    # NaN and infinity, which Python's JSON reader lets in, are results of nothing.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        found = f"{inside}{key} {value!r:.80}" if key in record else f"no key {inside}{key}"
        _damaged(path, found, f"a number under {inside}{key}")
    return value


def _cell(where: str, row: dict[str, Any], column: str) -> float | None:
    text = row.get(column)
    if text is None:
        _damaged(where, f"no column {column}", "a header and cells for iteration, train_loss and valid_loss")
    if text == "":
        return None
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        _damaged(where, f"{column} {text!r:.80}", "a number or an empty cell")
    return value


def _unreadable(path: Path, error: Exception, expected: str) -> NoReturn:
    if isinstance(error, FileNotFoundError):
        raise SqloraError(
            path, found="no such file", expected=expected, next_step="Run dvc repro at the top of the repository."
        ) from None
    _damaged(path, str(error), expected)


def _damaged(where: object, found: str, expected: str) -> NoReturn:
    raise SqloraError(where, found=found, expected=expected, next_step=_AGAIN) from None
