"""Prints the comparison of two revisions for a terminal."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sqlora.report.results import MEASURES
from sqlora.report.summary import print_text, wrap
from sqlora.score.components import COMPONENTS
from sqlora.score.revisions import Comparison, compare_revisions


def print_comparison(root: Path, arguments: Namespace) -> None:
    """Run the command in the repository `root`; `arguments` are first, second, system, list and json."""
    comparison = compare_revisions(root, arguments.first, arguments.second, system=arguments.system)
    if arguments.json:
        print(json.dumps(comparison.to_json(), indent=2))
    else:
        print_text(describe_comparison(comparison, arguments.list))


def describe_comparison(comparison: Comparison, listed: int) -> str:
    """Shares with intervals, what changed and whether by more than chance, and `listed` questions of each change."""
    facts = comparison.to_json()
    lines = [f"{facts['questions']:,} common test questions" + _left_out(facts["left_out"]), ""]
    lines += _table(facts["revisions"])
    for name, label in (("execution", "Execution"), ("logical_form", "Logical form")):
        lines += ["", *_verdict(label, facts[name])]
    for change in ("broken", "fixed"):
        lines += _list(change, facts[change], listed)
    return "\n".join(lines)


def _left_out(count: int) -> str:
    return f" ({count:,} that only one revision has are left out)" if count else ""


def _table(revisions: list[dict[str, Any]]) -> Iterator[str]:
    yield f"{'':<26}" + "".join(f"{revision['revision'][:26]:>28}" for revision in revisions)
    measures = {**MEASURES, **{name: "  " + name.replace("_", " ") for name in COMPONENTS}}
    for name, label in measures.items():
        yield f"{label:<26}" + "".join(f"{_share(revision, name):>28}" for revision in revisions)


def _share(revision: Mapping[str, Any], name: str) -> str:
    share = revision[name] if name in revision else revision["components"][name]
    low, high = revision["intervals"][name]
    return f"{share:.1%} [{low:.1%}, {high:.1%}]"


def _verdict(label: str, paired: Mapping[str, Any]) -> Iterator[str]:
    low, high = paired["interval"]
    yield (
        f"{label}: {paired['fixed']:,} fixed, {paired['broken']:,} broken, {paired['both_right']:,} right in both, "
        f"{paired['both_wrong']:,} wrong in both"
    )
    if not paired["fixed"] + paired["broken"]:
        return
    p = paired["p_value"]
    shown = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    word = "more than chance explains" if p < 0.05 else "may well be chance"
    difference = f"{100 * paired['difference']:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
    yield f"  difference {difference}, {shown} (McNemar): {word}"


def _list(change: str, questions: list[dict[str, str]], listed: int) -> Iterator[str]:
    for question in questions[:listed]:
        yield ""
        yield from wrap(f"{change}: ", question["question"].strip())
        for name in ("gold", "first", "second"):
            yield from wrap(f"  {name:<8}", question[name] or "(nothing)", most=2)
    if len(questions) > listed:
        yield ""
        yield f"… and {len(questions) - listed:,} more {change}; --list {len(questions)} shows all, --json everything."
