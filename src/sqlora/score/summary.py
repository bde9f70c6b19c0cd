"""Counts verdicts: results/score.json, results/details.json and results/breakdown.csv."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sqlora.score.components import COMPONENTS, matches
from sqlora.score.judge import Verdict
from sqlora.score.predictions import Prediction
from sqlora.score.statistics import Paired, pair, wilson
from sqlora.text import Example
from sqlora.wikisql.form import AGGREGATES, TYPES

BREAKDOWN_COLUMNS = (
    "system",
    "breakdown",
    "group",
    "examples",
    "execution_accuracy",
    "execution_low",
    "execution_high",
    "logical_form_accuracy",
    "logical_form_low",
    "logical_form_high",
)


HEADLINE = {
    "execution_accuracy": "execution",
    "logical_form_accuracy": "logical form",
    "valid_sql": "valid SQL",
    "stopped_at_eos": "stopped at EOS",
}


def summarise(
    examples: Sequence[Example], predictions: Sequence[Prediction], verdicts: Sequence[Verdict]
) -> dict[str, Any]:
    """One system's part of details.json: shares of all predictions with their 95% intervals (Wilson), and counts."""
    counts = {
        "execution_accuracy": sum(verdict.execution for verdict in verdicts),
        "logical_form_accuracy": sum(verdict.logical_form for verdict in verdicts),
        "valid_sql": sum(verdict.outcome == "ok" for verdict in verdicts),
        "stopped_at_eos": sum(prediction.stopped for prediction in predictions),
        "strict_execution_accuracy": sum(verdict.strict_execution for verdict in verdicts),
        "strict_logical_form_accuracy": sum(verdict.strict_logical_form for verdict in verdicts),
    }
    matched = [matches(example, verdict.form) for example, verdict in zip(examples, verdicts, strict=True)]
    components = {name: sum(name in match for match in matched) for name in COMPONENTS}
    total = len(verdicts)
    return {
        **{name: share(count, total) for name, count in counts.items()},
        "components": {name: share(count, total) for name, count in components.items()},
        "intervals": {name: interval(count, total) for name, count in (counts | components).items()},
        "outcomes": dict(sorted(Counter(verdict.outcome for verdict in verdicts).items())),
        "disagreements": dict(sorted(Counter(why for verdict in verdicts for why in verdict.disagreements).items())),
    }


def headline(system: Mapping[str, Any]) -> dict[str, Any]:
    """One system's part of score.json, the metrics that DVC's tables show: four shares, two of them with intervals.

    DVC drops lists, so an interval is a text there.
    """
    shares: dict[str, Any] = {}
    for name in HEADLINE:
        shares[name] = system[name]
        if name.endswith("_accuracy"):
            low, high = system["intervals"][name]
            shares[name.removesuffix("_accuracy") + "_interval"] = f"{low:.3f} to {high:.3f}"
    return shares


def chart_rows(systems: Mapping[str, Mapping[str, Any]]) -> list[dict[str, object]]:
    """The same shares as rows, which is what a plot of DVC reads."""
    return [
        {"measure": f"{name}, {label}", "share": system[measure], "low": low, "high": high}
        for measure, label in HEADLINE.items()
        for name, system in systems.items()
        for low, high in [system["intervals"][measure]]
    ]


def compare(base: Sequence[Verdict], adapter: Sequence[Verdict]) -> dict[str, Any]:
    """What the adapter changed, by each of the two official accuracies, question by question."""
    return {
        "execution": describe_pair(pair([v.execution for v in base], [v.execution for v in adapter])),
        "logical_form": describe_pair(pair([v.logical_form for v in base], [v.logical_form for v in adapter])),
    }


def describe_pair(paired: Paired) -> dict[str, Any]:
    """The four counts, the difference of the shares with its interval, and McNemar's p."""
    return {
        "both_right": paired.both_right,
        "fixed": paired.fixed,
        "broken": paired.broken,
        "both_wrong": paired.both_wrong,
        "difference": round(paired.difference, 4),
        "interval": [round(bound, 4) for bound in paired.interval()],
        # So small a number is no measure any more, only a sign; 1e-300 beside 0.03 would be noise in a diff.
        "p_value": max(round(paired.p_value(), 4), 0.0001) if paired.fixed + paired.broken else 1.0,
    }


def breakdown_rows(system: str, examples: Sequence[Example], verdicts: Sequence[Verdict]) -> Iterator[list[object]]:
    """A row of BREAKDOWN_COLUMNS for each group of each breakdown."""
    for name, group_of in BREAKDOWNS.items():
        groups: dict[str, list[Verdict]] = defaultdict(list)
        for example, verdict in zip(examples, verdicts, strict=True):
            groups[group_of(example)].append(verdict)
        for group in sorted(groups, key=_group_order):
            members = groups[group]
            row: list[object] = [system, name, group, len(members)]
            for count in (sum(v.execution for v in members), sum(v.logical_form for v in members)):
                row += [share(count, len(members)), *interval(count, len(members))]
            yield row


def share(count: int, total: int) -> float:
    """Rounded to four decimals, so that a diff of two runs can be read."""
    return round(count / total, 4)


def interval(count: int, total: int) -> list[float]:
    """The share's 95% interval, [low, high], rounded likewise."""
    return [round(bound, 4) for bound in wilson(count, total)]


def _aggregate(example: Example) -> str:
    return AGGREGATES[example.sql.agg] or "none"


def _conditions(example: Example) -> str:
    return str(len(example.sql.conds))


def _selected_type(example: Example) -> str:
    return example.types[example.sql.sel]


def _condition_types(example: Example) -> str:
    return " and ".join(sorted({example.types[column] for column, _, _ in example.sql.conds})) or "none"


# Of the gold query: its aggregate, its number of conditions, the types of the columns that it selects and compares.
BREAKDOWNS: dict[str, Callable[[Example], str]] = {
    "aggregate": _aggregate,
    "conditions": _conditions,
    "selected_type": _selected_type,
    "condition_types": _condition_types,
}
_ORDER = ["none", *AGGREGATES, *TYPES]


def _group_order(group: str) -> tuple[int, str]:
    return (_ORDER.index(group) if group in _ORDER else len(_ORDER), group)
