"""Figures of matplotlib as SVG elements that take their colours and their font from the page around them."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Literal

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Matplotlib knows no CSS variables: it draws in these colours, and the SVG's text is changed afterwards. None is
# black, which the SVG writer leaves out because it is SVG's default.
TEXT, RULE, CARD = "#010203", "#040506", "#070809"
TRAIN, VALID = "#0a0b0c", "#0d0e0f"
FIRST, SECOND = "#101112", "#131415"
_VARIABLES = {
    TEXT: "--muted",
    RULE: "--rule",
    CARD: "--card",
    TRAIN: "--curve-train",
    VALID: "--curve-valid",
    FIRST: "--first-fill",
    SECOND: "--second-fill",
}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sqlora",  # otherwise ids are random
    "font.size": 11.5,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": RULE,
    "grid.color": RULE,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
}
Axis = Literal["x", "y"]
WIDTH = 5.6  # inches; the page scales it


class Chart:
    """One chart while it is drawn.

    axes: to draw on; lines of the grid and the frame are quiet already.
    """

    def __init__(self, figure: Figure, *, grid: Axis) -> None:
        self._figure = figure
        self.axes: Axes = figure.add_subplot()
        figure.patch.set_visible(False)
        self.axes.patch.set_visible(False)
        self.axes.grid(axis=grid, linewidth=0.8)
        self.axes.set_axisbelow(True)
        self.axes.spines[["left", "top", "right"]].set_visible(False)
        self.axes.tick_params(axis="y", length=0)

    def legend(self) -> None:
        """Above the axes, where no line can cross it."""
        _, labels = self.axes.get_legend_handles_labels()
        if labels:
            # Names of revisions may be long: then a line each.
            wide = sum(map(len, labels)) > 45 or len(labels) > 3
            self._figure.legend(loc="outside upper left", ncols=1 + (not wide) * (len(labels) - 1), frameon=False)

    def svg(self, name: str, label: str) -> str:
        """An <svg> element; equal charts give equal bytes.

        Args:
            name: distinguishes the ids of this element from those of the page's other charts.
            label: what it shows, for those who do not see it.
        """
        buffer = io.StringIO()
        with warnings.catch_warnings():
            # Text stays text, so its letters need not be in the font that it is measured in.
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            self._figure.savefig(buffer, format="svg")
        return _inline(buffer.getvalue(), name, label)


@contextmanager
def chart(*, height: float, grid: Axis) -> Iterator[Chart]:
    """A chart of WIDTH × `height` inches with lines across its `grid` axis (`x` or `y`)."""
    # Settings of the user's own matplotlibrc must not reach the page, hence `default` first.
    with style.context(["default", _STYLE]):
        yield Chart(Figure(figsize=(WIDTH, height), layout="constrained"), grid=grid)


def plain(text: str) -> str:
    """The text such that matplotlib draws it as it is, instead of reading formulas between dollar signs."""
    return text.replace("$", r"\$")


def _inline(svg: str, name: str, label: str) -> str:
    svg = svg[svg.index("<svg") :]
    # The metadata hold a date and a version; the style would reach the whole page.
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.S)
    # The page sets the size; the view box keeps the proportions.
    start = f'role="img" aria-label="{escape(label)}">'
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', lambda match: f"<svg {match[1]} {start}", svg, count=1)
    # The text was measured in DejaVu Sans, which is wider than most: any font of the page fits. One version of
    # matplotlib writes `font: 11px NAMES`, another `font-size: 11px; font-family: NAMES`.
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    # Every chart has an axes_1; only what is referred to keeps an id.
    used = set(re.findall(r'(?:href="|url\()#([\w-]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.strip()
