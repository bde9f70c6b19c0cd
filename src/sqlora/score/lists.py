"""Lists of questions for people: results/errors.csv, and what the adapter fixed and broke."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlora.score.judge import Verdict, shorten
from sqlora.score.predictions import Prediction
from sqlora.text import Example, render_sql

ERROR_COLUMNS = (
    "index",
    "table_id",
    "question",
    "gold",
    "gold_result",
    "base",
    "base_outcome",
    "base_result",
    "adapter",
    "adapter_outcome",
    "adapter_result",
)
CHANGE_COLUMNS = (
    "change",
    "index",
    "table_id",
    "question",
    "gold",
    "base",
    "base_outcome",
    "adapter",
    "adapter_outcome",
)
# Of an outcome that only the base model had, on questions that the adapter got right.
_SAMPLES = 3


@dataclass(frozen=True, slots=True)
class Judged:
    """One system's predictions and their verdicts, in the order of the examples."""

    predictions: Sequence[Prediction]
    verdicts: Sequence[Verdict]


def error_rows(examples: Sequence[Example], base: Judged, adapter: Judged) -> Iterator[list[object]]:
    """A row of ERROR_COLUMNS for each question whose result the adapter got wrong, and examples of other failures."""
    shown: Counter[str] = Counter(verdict.outcome for verdict in adapter.verdicts if not verdict.execution)
    for index, example in enumerate(examples):
        verdict, before = adapter.verdicts[index], base.verdicts[index]
        if verdict.execution:
            if before.outcome == "ok" or shown[before.outcome] >= _SAMPLES:
                continue
            shown[before.outcome] += 1
        row: list[object] = [index, example.table_id, example.question, render_sql(example.sql, example)]
        row.append(shorten(verdict.gold_result))
        for system in (base, adapter):
            answer = system.verdicts[index]
            row += [system.predictions[index].completion.strip(), _outcome(answer), shorten(answer.result)]
        yield row


def _outcome(verdict: Verdict) -> str:
    """The outcome as people say it: a valid query is `right` or `wrong`, by its result."""
    if verdict.outcome != "ok":
        return verdict.outcome
    return "right" if verdict.execution else "wrong"


def change_rows(examples: Sequence[Example], base: Judged, adapter: Judged) -> Iterator[list[object]]:
    """A row of CHANGE_COLUMNS for each question whose result only one of the two got right, the broken ones first."""
    for change in ("broken", "fixed"):
        for index, example in enumerate(examples):
            right = adapter.verdicts[index].execution
            if right == base.verdicts[index].execution or right != (change == "fixed"):
                continue
            row: list[object] = [change, index, example.table_id, example.question, render_sql(example.sql, example)]
            for system in (base, adapter):
                row += [system.predictions[index].completion.strip(), system.verdicts[index].outcome]
            yield row
