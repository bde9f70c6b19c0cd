"""Renders results/report.html: one file that holds its styles and its charts, loads nothing and runs no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from sqlora.report.breakdown import TITLES, Group
from sqlora.report.cases import OUTCOMES, Case
from sqlora.report.curve import draw_loss, draw_memory
from sqlora.report.dataset import SPLITS, Part, rows
from sqlora.report.facts import parameters, run_card
from sqlora.report.failures import SHOWN, Kind
from sqlora.report.intervals import draw_groups
from sqlora.report.results import MEASURES, STRICT, SYSTEMS, LossPoint, Scores, Training
from sqlora.report.template import render
from sqlora.score.components import COMPONENTS

LABELS = {system: system.capitalize() for system in SYSTEMS}


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that the page shows of one run; params: section of params.yaml -> its dataclass."""

    scores: Scores
    training: Training
    loss: Sequence[LossPoint]
    parts: Mapping[str, Part]
    breakdown: Mapping[str, Sequence[Group]]
    params: Mapping[str, Any]
    cases: Sequence[Case]
    failures: Sequence[Kind]


def render_page(run: Run) -> str:
    """The page; equal runs give equal texts. Whatever a model or a data set wrote is escaped."""
    # What charts hold of a run is escaped by matplotlib and sqlora.report.svg.
    charts = {
        name: Markup(draw_groups(name.replace("_", "-"), TITLES[name], groups, LABELS))
        for name, groups in run.breakdown.items()
    }
    return render(
        "report.html.jinja",
        run=run,
        scores=run.scores,
        measures=MEASURES,
        strict=STRICT,
        labels=LABELS,
        components={name: name.replace("_", " ").capitalize() for name in COMPONENTS},
        verdict=verdict(run.scores),
        disagreements=_disagreements(run.scores),
        titles=TITLES,
        card=run_card(run.params, run.training, run.parts),
        parameters=parameters(run.params),
        shown=SHOWN,
        splits=SPLITS,
        dataset=rows(run.parts),
        curve=Markup(draw_loss(run.loss)),
        memory=Markup(draw_memory(run.loss, run.training.predicted_peak_memory_gb)),
        charts=charts,
        filters={system: _marks(run.cases, system) for system in reversed(SYSTEMS)},
        meanings=OUTCOMES,
    )


def verdict(scores: Scores) -> str:
    """Whether what the adapter changed is more than chance."""
    change = scores.change
    if not change.fixed + change.broken:
        return "The adapter changed no answer from wrong to right or back."
    low, high = (f"{100 * bound:+.1f}" for bound in change.interval)
    p = "p < 0.001" if change.p_value < 0.001 else f"p = {change.p_value:.3f}"
    word = "more than chance explains" if change.p_value < 0.05 else "may well be chance"
    return (
        f"{100 * change.difference:+.1f} points (95% interval {low} to {high}): {change.fixed:,} fixed, "
        f"{change.broken:,} broken, {change.both_right:,} right with both, {change.both_wrong:,} wrong with both; "
        f"{p} by McNemar's exact test, {word}."
    )


DISAGREEMENTS = {
    "number_form": "the same number written in another way (7 and 7.0), which the official evaluator takes for two",
    "row_order": "the same rows in another order, which the official evaluator takes for another result",
    "overwritten_condition": "two conditions on one column, both of which get the last value in the official evaluator",
}


def _disagreements(scores: Scores) -> list[str]:
    """A sentence for each system and reason for which official and strict measures differ."""
    return [
        f"{system.capitalize()}: {count:,} answer{'s' * (count != 1)} with {DISAGREEMENTS.get(why, why)}."
        for system in SYSTEMS
        for why, count in scores.systems[system].disagreements.items()
    ]


def _marks(cases: Sequence[Case], system: str) -> list[tuple[str, int]]:
    """(mark, how many of the cases have it), `right` and `wrong` first, for the filter."""
    marks = [case.answers[system].mark for case in cases]
    order = ["right", "wrong", *OUTCOMES]
    return [(mark, marks.count(mark)) for mark in sorted(set(marks), key=order.index)]
