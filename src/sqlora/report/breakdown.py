"""Reads results/breakdown.csv: which kinds of questions are answered right."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlora.report.reading import damaged, unreadable
from sqlora.report.results import SYSTEMS

TITLES = {
    "aggregate": "Aggregate",
    "conditions": "Number of conditions",
    "selected_type": "Type of the selected column",
    "condition_types": "Types of the compared columns",
}


@dataclass(frozen=True, slots=True)
class Group:
    """Questions of one kind; accuracy: system -> (share right by execution, low and high end of its 95% interval)."""

    name: str
    examples: int
    accuracy: Mapping[str, tuple[float, float, float]]


def read_breakdown(path: Path) -> dict[str, list[Group]]:
    """Breakdown -> its groups, in the order of the file.

    Raises:
        SqloraError: no such file, or a row that is not what the score stage writes.
    """
    found: dict[str, dict[str, dict[str, tuple[float, float, float]]]] = {}
    sizes: dict[tuple[str, str], int] = {}
    try:
        with open(path, encoding="utf-8", newline="") as handle:
            rows = csv.DictReader(handle)
            for row in rows:
                where = f"{path}:{rows.line_num}"
                try:
                    breakdown, group, system = row["breakdown"], row["group"], row["system"]
                    sizes[breakdown, group] = int(row["examples"])
                    shares = tuple(float(row[f"execution_{name}"]) for name in ("accuracy", "low", "high"))
                except (KeyError, TypeError, ValueError) as error:
                    damaged(where, f"{row!r:.120} ({error})", "a row that the score stage writes")
                low_to_high = shares[1] <= shares[0] <= shares[2]
                if breakdown not in TITLES or system not in SYSTEMS or not low_to_high:
                    damaged(where, f"{row!r:.120}", "a row that the score stage writes")
                found.setdefault(breakdown, {}).setdefault(group, {})[system] = (shares[0], shares[1], shares[2])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        unreadable(path, error, "the breakdown that the score stage writes")
    complete = all(set(accuracy) == set(SYSTEMS) for groups in found.values() for accuracy in groups.values())
    if set(found) != set(TITLES) or not complete:
        damaged(path, f"rows for {', '.join(found) or 'nothing'}", f"each of {', '.join(TITLES)} for both systems")
    return {
        breakdown: [Group(group, sizes[breakdown, group], accuracy) for group, accuracy in found[breakdown].items()]
        for breakdown in TITLES
    }
