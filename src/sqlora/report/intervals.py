"""Draws shares with their intervals, two systems side by side, a line a group of questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.ticker import FixedLocator, PercentFormatter

from sqlora.report.breakdown import Group
from sqlora.report.svg import FIRST, SECOND, chart, plain

_APART = 0.17  # from the middle of a group's line to each system's, in lines


def draw_groups(name: str, title: str, groups: Sequence[Group], labels: Mapping[str, str]) -> str:
    """An <svg> element with a dot for each share and a line for its 95% interval.

    Args:
        name: of the chart, for its ids.
        title: what the groups are.
        groups: from top to bottom.
        labels: the two systems -> what the legend calls them.
    """
    with chart(height=0.95 + 0.44 * len(groups), grid="x") as drawn:
        for (system, label), colour, side in zip(labels.items(), (FIRST, SECOND), (-1, 1), strict=True):
            shares = [group.accuracy[system] for group in groups]
            drawn.axes.errorbar(
                [share for share, _, _ in shares],
                [line + side * _APART for line in range(len(groups))],
                xerr=[[share - low for share, low, _ in shares], [high - share for share, _, high in shares]],
                fmt="o",
                color=colour,
                markersize=6,
                elinewidth=2.4,
                label=plain(label),
                clip_on=False,
            )
        drawn.axes.set_xlim(-0.02, 1.02)  # room for a dot at either end
        drawn.axes.tick_params(axis="y", pad=8)
        drawn.axes.xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
        drawn.axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        drawn.axes.set_ylim(len(groups) - 0.5, -0.5)
        drawn.axes.set_yticks(range(len(groups)), [plain(group.name) for group in groups])
        drawn.legend()
        return drawn.svg(name, f"{title}. " + "; ".join(_describe(group, labels) for group in groups))


def _describe(group: Group, labels: Mapping[str, str]) -> str:
    shares = ", ".join(f"{label} {group.accuracy[system][0]:.1%}" for system, label in labels.items())
    return f"{group.name}: {shares}"
