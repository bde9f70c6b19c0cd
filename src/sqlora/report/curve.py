"""Draws losses and memory by iteration."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from sqlora.report.results import LossPoint
from sqlora.report.svg import FIRST, SECOND, TRAIN, VALID, chart, plain

# From this ratio on a linear axis shows the first steps and a flat line.
_LOG_FROM = 10.0
_HEIGHT = 3.9  # inches


def draw_loss(points: Sequence[LossPoint]) -> str:
    """An <svg> element with training and validation loss by iteration."""
    with chart(height=_HEIGHT, grid="y") as drawn:
        train, valid = _series(points)
        if train:
            drawn.axes.plot(*zip(*train, strict=True), color=TRAIN, linewidth=1.6, label="training")
        if valid:
            drawn.axes.plot(
                *zip(*valid, strict=True), "o-", color=VALID, linewidth=2.2, markersize=5, label="validation"
            )
        _loss_axes(drawn.axes, [loss for _, loss in train + valid])
        drawn.legend()
        return drawn.svg("loss", f"Loss by iteration: {_describe(points)}")


def draw_losses(runs: Sequence[tuple[str, Sequence[LossPoint]]]) -> str:
    """An <svg> element with the losses of two runs, each with its name: validation in thick lines, training in thin."""
    with chart(height=_HEIGHT + 0.4, grid="y") as drawn:
        losses: list[float] = []
        for (name, points), colour in zip(runs, (FIRST, SECOND), strict=True):
            train, valid = _series(points)
            if train:
                label = plain(f"{name}, training")
                drawn.axes.plot(*zip(*train, strict=True), color=colour, linewidth=1.0, alpha=0.6, label=label)
            if valid:
                label = plain(f"{name}, validation")
                drawn.axes.plot(*zip(*valid, strict=True), "o-", color=colour, linewidth=2.2, markersize=5, label=label)
            losses += [loss for _, loss in train + valid]
        _loss_axes(drawn.axes, losses)
        drawn.legend()
        described = "; ".join(f"{name}: {_describe(points)}" for name, points in runs)
        return drawn.svg("loss", f"Loss by iteration. {described}")


def draw_memory(points: Sequence[LossPoint], predicted: float | None) -> str:
    """An <svg> element with the peak of memory up to each iteration and the peak that was predicted, in GB.

    Empty where no memory was measured.
    """
    measured = [(point.iteration, point.memory_gb) for point in points if point.memory_gb is not None]
    if not measured:
        return ""
    with chart(height=_HEIGHT, grid="y") as drawn:
        drawn.axes.plot(*zip(*measured, strict=True), color=SECOND, linewidth=2.2, label="measured so far")
        label = f"Peak of memory by iteration: {max(memory for _, memory in measured):.2f} GB measured"
        if predicted is not None:
            drawn.axes.axhline(predicted, color=FIRST, linewidth=1.8, linestyle="--", label="predicted before the run")
            label += f", {predicted:.2f} GB predicted"
        drawn.axes.set_ylim(0, 1.2 * max(predicted or 0.0, *(memory for _, memory in measured)))
        drawn.axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        drawn.axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        drawn.axes.set_xlabel("iteration")
        drawn.axes.set_ylabel("peak memory in GB")
        drawn.legend()
        return drawn.svg("memory", label)


def _series(points: Sequence[LossPoint]) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    train = [(point.iteration, point.train) for point in points if point.train is not None]
    valid = [(point.iteration, point.valid) for point in points if point.valid is not None]
    return train, valid


def _loss_axes(axes: Axes, losses: Sequence[float]) -> None:
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


def _describe(points: Sequence[LossPoint]) -> str:
    texts = [
        f"{name} loss from {losses[0][1]:.3f} to {losses[-1][1]:.3f}"
        for name, losses in zip(("training", "validation"), _series(points), strict=True)
        if losses
    ]
    return f"{', '.join(texts)}, over {points[-1].iteration} iterations"
