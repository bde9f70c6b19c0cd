"""Renders two revisions side by side: one file that loads nothing and runs no script."""

from __future__ import annotations

from markupsafe import Markup

from sqlora.report.breakdown import TITLES
from sqlora.report.cases import visible
from sqlora.report.curve import draw_losses
from sqlora.report.facts import show
from sqlora.report.intervals import draw_groups
from sqlora.report.side_by_side.differences import changed, costs, groups, measures
from sqlora.report.side_by_side.gather import Pair, different_params
from sqlora.report.template import render

_LONGEST = 40  # letters of a revision's name: a whole hash
LISTED = 10  # questions that were fixed, and that were broken


def render_pair(pair: Pair) -> str:
    """The page; equal runs give equal texts. Whatever a model, a data set or a revision's name says is escaped."""
    sides = (pair.first, pair.second)
    labels = {"first": _label(pair.first.revision), "second": _label(pair.second.revision)}
    broken_down = groups(pair.comparison)
    scores = measures(pair.comparison)
    return render(
        "side_by_side.html.jinja",
        package="sqlora.report.side_by_side",
        sides=sides,
        labels=labels,
        questions=len(pair.comparison.first.examples),
        left_out=pair.comparison.left_out,
        execution=scores[0],
        measures=scores,
        params=[(key, show(before), show(after)) for key, before, after in different_params(pair)],
        same_loss=pair.first.params.get("train.loss") == pair.second.params.get("train.loss"),
        curve=Markup(draw_losses([(label, side.loss) for label, side in zip(labels.values(), sides, strict=True)])),
        costs=costs(pair.first.training, pair.second.training),
        titles=TITLES,
        breakdown={name: [group for group, _ in members] for name, members in broken_down.items()},
        changes={name: [change for _, change in members] for name, members in broken_down.items()},
        charts={
            name: Markup(draw_groups(name.replace("_", "-"), TITLES[name], [group for group, _ in members], labels))
            for name, members in broken_down.items()
        },
        lists={
            change: changed(pair.comparison, fixed=change == "fixed", most=LISTED) for change in ("broken", "fixed")
        },
    )


def _label(revision: str) -> str:
    """A revision's name in a table's or a chart's heading."""
    name = visible(revision)
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
