"""Reads what earlier stages left in results/, and says which file is missing, damaged or out of step."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlora.errors import SqloraError
from sqlora.report.reading import damaged, read_counts, read_json, read_number, read_object, unreadable
from sqlora.score.components import COMPONENTS

SYSTEMS = ("base", "adapter")
# Measures of details.json -> what people call them, in the order in which they are shown.
MEASURES = {
    "execution_accuracy": "Execution accuracy",
    "logical_form_accuracy": "Logical-form accuracy",
    "valid_sql": "Valid SQL",
    "stopped_at_eos": "Stopped at EOS",
}
STRICT = {"execution_accuracy": "strict_execution_accuracy", "logical_form_accuracy": "strict_logical_form_accuracy"}

# Runs of earlier versions have not recorded these.
_OPTIONAL = (
    "published_iteration",
    "best_valid_loss",
    "predicted_peak_memory_gb",
    "frozen_seconds",
    "train_seconds",
    "validation_seconds",
    "workers",
)
_MEMORY = "peak_memory_gb"
_EXACT = 10_000  # up to so many examples a share of four decimals belongs to one count only


@dataclass(frozen=True, slots=True)
class Score:
    """One system's scores.

    shares: name of a measure or component -> share from 0 to 1; intervals: the same -> its 95% interval.
    outcomes: name -> how many predictions had it; disagreements: why official and strict measures differ -> how often.
    """

    shares: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    outcomes: Mapping[str, int]
    disagreements: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Change:
    """Base and adapter on the same questions; difference: of the shares, with its 95% interval; p_value: McNemar's."""

    both_right: int
    fixed: int
    broken: int
    both_wrong: int
    difference: float
    interval: tuple[float, float]
    p_value: float


@dataclass(frozen=True, slots=True)
class Scores:
    """examples: size of the test split; systems: `base` and `adapter` -> score; change: by execution accuracy."""

    examples: int
    systems: Mapping[str, Score]
    change: Change

    def percent(self, system: str, measure: str) -> str:
        """Such as `74.8%`; 0.0% and 100.0% are never the result of rounding."""
        share = self.systems[system].shares[measure]
        if 0 < share < 0.0005:
            return "<0.1%"
        return ">99.9%" if 0.9995 <= share < 1 else f"{share:.1%}"

    def interval(self, system: str, measure: str) -> str:
        """Such as `71.9 to 81.4%`."""
        low, high = self.systems[system].intervals[measure]
        return f"{100 * low:.1f} to {100 * high:.1f}%"

    def count(self, system: str, measure: str) -> str:
        """How many predictions; marked as about so many where the rounded share leaves that open."""
        count = round(self.systems[system].shares[measure] * self.examples)
        return f"{count:,}" if self.examples <= _EXACT else f"about {count:,}"


@dataclass(frozen=True, slots=True)
class Training:
    """results/training.json; losses in nats per token. What a run of an earlier version has not recorded is None.

    published_iteration: whose adapter is published; 0 is the untrained one.
    workers: ranks of the last run of the stage; one that went on from checkpoints may have had others before.
    environment: (name, value) of the machine and the versions that trained; empty if not recorded.
    """

    iterations: float
    published_iteration: float | None
    first_valid_loss: float
    final_train_loss: float
    final_valid_loss: float
    best_valid_loss: float | None
    tokens_per_second: float
    peak_memory_gb: float
    trainable_parameters: float
    total_parameters: float
    predicted_peak_memory_gb: float | None
    frozen_seconds: float | None
    train_seconds: float | None
    validation_seconds: float | None
    workers: float | None
    environment: tuple[tuple[str, str], ...]

    @property
    def published_valid_loss(self) -> float | None:
        """Of the published adapter, which is the best one or, by train.keep, the last."""
        if self.published_iteration is None:
            return None
        return self.final_valid_loss if self.published_iteration == self.iterations else self.best_valid_loss


@dataclass(frozen=True, slots=True)
class LossPoint:
    """A row of results/loss.csv; what was not measured is None. memory_gb: the peak of memory so far."""

    iteration: int
    train: float | None
    valid: float | None
    memory_gb: float | None = None


def read_scores(path: Path, examples: int) -> Scores:
    """Read results/details.json.

    Args:
        examples: size of the test split that the scores must be about.

    Raises:
        SqloraError: no such file, a key that is missing or no number, or scores of another split.
    """
    record = read_json(path)
    size = int(read_number(path, record, "examples"))
    if size != examples:
        raise SqloraError(
            path,
            found=f"scores of {size} predictions",
            expected=f"scores of the {examples} test questions in the dataset",
            next_step="Run dvc repro at the top of the repository.",
        )
    systems = {system: _score(path, read_object(path, record, system), system) for system in SYSTEMS}
    return Scores(size, systems, _change(path, read_object(path, read_object(path, record, "comparison"), "execution")))


def read_training(path: Path) -> Training:
    """Read results/training.json; raises SqloraError for a missing file, or a key that is missing or no number."""
    record = read_json(path)
    # Slots have no defaults, so their names are the keys.
    names = [name for name in Training.__slots__ if name != "environment"]
    numbers = {
        name: None if name in _OPTIONAL and name not in record else read_number(path, record, name) for name in names
    }
    return Training(**numbers, environment=_environment(path, record.get("environment", [])))  # type: ignore[arg-type]


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
                    damaged(where, "no iteration", "a number in every row")
                train, valid = (_cell(where, row, f"{name}_loss") for name in ("train", "valid"))
                memory = _cell(where, row, _MEMORY) if _MEMORY in row else None
                points.append(LossPoint(int(iteration), train, valid, memory))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        unreadable(path, error, "the losses that the train stage writes")
    if not points:
        damaged(path, "no row", "the losses that the train stage writes")
    return points


def _environment(path: Path, value: Any) -> tuple[tuple[str, str], ...]:
    pairs = value if isinstance(value, list) else [value]
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            damaged(path, f"environment {value!r:.80}", "a list of [name, value] under environment")
    return tuple((name, text) for name, text in pairs)


def _score(path: Path, record: dict[str, Any], system: str) -> Score:
    inside = system + "."
    measures = {name: read_number(path, record, name, inside) for name in (*MEASURES, *STRICT.values())}
    components = read_object(path, record, "components")
    shares = measures | {name: read_number(path, components, name, f"{inside}components.") for name in COMPONENTS}
    intervals = read_object(path, record, "intervals")
    return Score(
        shares,
        {name: _interval(path, intervals, name, f"{inside}intervals.") for name in shares},
        read_counts(path, record, "outcomes", inside),
        read_counts(path, record, "disagreements", inside),
    )


def _change(path: Path, record: dict[str, Any]) -> Change:
    inside = "comparison.execution."
    counts = {
        name: int(read_number(path, record, name, inside)) for name in ("both_right", "fixed", "broken", "both_wrong")
    }
    return Change(
        **counts,
        difference=read_number(path, record, "difference", inside),
        interval=_interval(path, record, "interval", inside),
        p_value=read_number(path, record, "p_value", inside),
    )


def _interval(path: Path, record: dict[str, Any], key: str, inside: str) -> tuple[float, float]:
    value = record.get(key)
    if not isinstance(value, list) or len(value) != 2:
        found = f"{inside}{key} {value!r:.80}" if key in record else f"no key {inside}{key}"
        damaged(path, found, f"two numbers under {inside}{key}")
    bounds = dict(zip(("low", "high"), value, strict=True))
    return read_number(path, bounds, "low", f"{inside}{key}."), read_number(path, bounds, "high", f"{inside}{key}.")


def _cell(where: str, row: dict[str, Any], column: str) -> float | None:
    text = row.get(column)
    if text is None:
        damaged(where, f"no column {column}", "a header and cells for iteration, train_loss and valid_loss")
    if text == "":
        return None
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        damaged(where, f"{column} {text!r:.80}", "a number or an empty cell")
    return value
