"""Draws the loss curve as an SVG element that takes its colours and its font from the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from sqlora.report.results import LossPoint

# Matplotlib knows no CSS variables: it draws in these colours, and the SVG's text is changed afterwards. None is
# black, which the SVG writer leaves out because it is SVG's default.
_TEXT, _RULE, _TRAIN, _VALID = "#010203", "#040506", "#070809", "#0a0b0c"
_VARIABLES = {_TEXT: "--muted", _RULE: "--rule", _TRAIN: "--curve-train", _VALID: "--curve-valid"}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sqlora",  # otherwise ids are random
    "font.size": 11.5,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _RULE,
    "grid.color": _RULE,
    "xtick.color": _RULE,
    "ytick.color": _RULE,
    "xtick.labelcolor": _TEXT,
    "ytick.labelcolor": _TEXT,
}
# From this ratio on a linear axis shows the first steps and a flat line.
_LOG_FROM = 10.0


def draw_loss(points: Sequence[LossPoint]) -> str:
    """An <svg> element with training and validation loss by iteration; equal points give equal bytes."""
    train = [(point.iteration, point.train) for point in points if point.train is not None]
    valid = [(point.iteration, point.valid) for point in points if point.valid is not None]
    losses = [loss for _, loss in train + valid]
    # Settings of the user's own matplotlibrc must not reach the page, hence `default` first.
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=(5.6, 3.9), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        if train:
            axes.plot(*zip(*train, strict=True), color=_TRAIN, linewidth=1.6, label="training")
        if valid:
            axes.plot(*zip(*valid, strict=True), "o-", color=_VALID, linewidth=2.2, markersize=5, label="validation")
        log = bool(losses) and min(losses) > 0 and max(losses) > _LOG_FROM * min(losses)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.set_xlabel("iteration")
        axes.set_ylabel("loss in nats per token" + ", log scale" * log)
        axes.grid(axis="y", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["left", "top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        if losses:
            figure.legend(
                loc="outside upper left", ncols=2, frameon=False
            )  # above the axes, where no line can cross it
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg")
    return _inline(buffer.getvalue(), _describe(points))


def _describe(points: Sequence[LossPoint]) -> str:
    texts = []
    for name, losses in (
        ("training", [point.train for point in points if point.train is not None]),
        ("validation", [point.valid for point in points if point.valid is not None]),
    ):
        if losses:
            texts.append(f"{name} loss from {losses[0]:.3f} to {losses[-1]:.3f}")
    return f"Loss by iteration: {', '.join(texts)}, over {points[-1].iteration} iterations"


def _inline(svg: str, label: str) -> str:
    svg = svg[svg.index("<svg") :]
    # The metadata hold a date and a version; the style would reach the whole page.
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.S)
    # The page sets the size; the view box keeps the proportions.
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 role="img" aria-label="{label}">', svg, count=1)
    # The text was measured in DejaVu Sans, which is wider than most: any font of the page fits. One version of
    # matplotlib writes `font: 11px NAMES`, another `font-size: 11px; font-family: NAMES`.
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.strip()
