"""Reads results/dataset.json and arranges it for the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlora.report.reading import read_counts, read_json, read_number, read_object

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, slots=True)
class Part:
    """What the split stage says of one split; aggregates and conditions: group of questions -> how many."""

    examples: int
    tables: int
    mean_tokens: float
    longest: int
    longest_completion: int
    degenerate: int
    duplicates: int
    questions_without_value: int
    unreadable: int
    questions_in_train: int
    aggregates: Mapping[str, int]
    conditions: Mapping[str, int]


def read_parts(path: Path) -> dict[str, Part]:
    """Read results/dataset.json: name of the split -> its description.

    Raises:
        SqloraError: no such file, or a key that is missing or no number.
    """
    record = read_json(path)
    return {name: _part(path, read_object(path, record, name), name + ".") for name in SPLITS}


def rows(parts: Mapping[str, Part]) -> list[tuple[str, list[str]]]:
    """(what, its value for each split) for the page's table."""
    every = [parts[name] for name in SPLITS]
    return [
        ("Examples", [f"{part.examples:,}" for part in every]),
        ("Tables, none of them in two splits", [f"{part.tables:,}" for part in every]),
        ("Tokens on average, longest", [f"{part.mean_tokens:,.0f}, {part.longest:,}" for part in every]),
        ("Longest answer in tokens", [f"{part.longest_completion:,}" for part in every]),
        ("Aggregates", [_shares(part.aggregates, part.examples) for part in every]),
        ("Conditions", [_shares(part.conditions, part.examples) for part in every]),
        ("Gold queries that return nothing", [_count(part.degenerate, part.examples) for part in every]),
        ("Gold queries that the parser cannot read", [_count(part.unreadable, part.examples) for part in every]),
        ("Questions that do not say a value", [_count(part.questions_without_value, part.examples) for part in every]),
        ("Questions asked twice", [_count(part.duplicates, part.examples) for part in every]),
        (
            "Questions that training has, about another table",
            ["", *(_count(part.questions_in_train, part.examples) for part in every[1:])],
        ),
    ]


def _part(path: Path, record: dict[str, Any], inside: str) -> Part:
    counts = {
        name: int(read_number(path, record, name, inside))
        for name in (
            "examples",
            "tables",
            "degenerate",
            "duplicates",
            "questions_without_value",
            "unreadable",
        )
    }
    tokens, completion = (read_object(path, record, name) for name in ("tokens", "completion_tokens"))
    return Part(
        **counts,
        questions_in_train=0 if inside == "train." else int(read_number(path, record, "questions_in_train", inside)),
        mean_tokens=read_number(path, tokens, "mean", f"{inside}tokens."),
        longest=int(read_number(path, tokens, "max", f"{inside}tokens.")),
        longest_completion=int(read_number(path, completion, "max", f"{inside}completion_tokens.")),
        aggregates=read_counts(path, record, "aggregates", inside),
        conditions=read_counts(path, record, "conditions", inside),
    )


def _count(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})" if count else "0"


def _shares(groups: Mapping[str, int], total: int) -> str:
    return ", ".join(f"{name}: {count / total:.0%}" for name, count in groups.items() if count)
