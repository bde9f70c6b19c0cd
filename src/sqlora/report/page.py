"""Renders results/report.html: one file that holds its styles and its chart, loads nothing and runs no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from sqlora.params.lora import LoraParams
from sqlora.params.train import TrainParams
from sqlora.report.breakdown import TITLES, Group
from sqlora.report.cases import OUTCOMES, Case, visible
from sqlora.report.curve import draw_loss
from sqlora.report.dataset import SPLITS, Part, rows
from sqlora.report.results import MEASURES, STRICT, SYSTEMS, LossPoint, Scores, Training
from sqlora.score.components import COMPONENTS

_ADAPTERS = {"lora": "LoRA", "dora": "DoRA"}
_TEMPLATE, _STYLES = "report.html.jinja", "report.css"  # package data, beside this file


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that the page shows of one run."""

    scores: Scores
    training: Training
    loss: Sequence[LossPoint]
    parts: Mapping[str, Part]
    breakdown: Mapping[str, Sequence[Group]]
    lora: LoraParams
    train: TrainParams
    cases: Sequence[Case]


def render_page(run: Run) -> str:
    """The page; equal runs give equal texts. Whatever a model or a data set wrote is escaped."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["visible"] = visible
    # These two hold nothing but our own text and numbers; everything else goes through the escaping.
    trusted = {"styles": Markup(_package_text(_STYLES)), "curve": Markup(draw_loss(run.loss))}
    return environment.from_string(_package_text(_TEMPLATE)).render(
        run=run,
        scores=run.scores,
        measures=MEASURES,
        strict=STRICT,
        systems=SYSTEMS,
        components={name: name.replace("_", " ").capitalize() for name in COMPONENTS},
        verdict=_verdict(run.scores),
        disagreements=_disagreements(run.scores),
        titles=TITLES,
        outcomes=_outcomes(run.scores),
        splits=SPLITS,
        dataset=rows(run.parts),
        facts=_facts(run),
        **trusted,
    )


def _verdict(scores: Scores) -> str:
    """Whether what the adapter changed is more than chance."""
    change = scores.change
    low, high = (f"{100 * bound:+.1f}" for bound in change.interval)
    p = "p < 0.001" if change.p_value < 0.001 else f"p = {change.p_value:.3f}"
    if not change.fixed + change.broken:
        return "The adapter changed no answer from wrong to right or back."
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


def _outcomes(scores: Scores) -> list[tuple[str, str, list[int]]]:
    """(outcome, its meaning, count for each system), `ok` first, then the most frequent."""
    counts = {
        name: [scores.systems[system].outcomes.get(name, 0) for system in SYSTEMS]
        for name in {name for system in SYSTEMS for name in scores.systems[system].outcomes}
    }
    order = sorted(counts, key=lambda name: (name != "ok", -sum(counts[name]), name))
    return [(name, OUTCOMES.get(name, ""), counts[name]) for name in order]


def _facts(run: Run) -> list[tuple[str, str, str]]:
    """(name, value, remark)."""
    training, lora, train = run.training, run.lora, run.train
    layers = f"top {lora.layers} layers" if lora.layers > 1 else "top layer"
    share = training.trainable_parameters / training.total_parameters if training.total_parameters else 0.0
    return [
        ("Adapter", f"{_ADAPTERS[lora.adapter]}, rank {lora.rank}", f"on {', '.join(lora.targets)} of the {layers}"),
        (
            "Iterations",
            f"{training.iterations:,}",
            f"of batch {train.batch_size}, learning rate {train.learning_rate:g}",
        ),
        ("Training loss", f"{training.final_train_loss:.3f}", "at the end"),
        (
            "Validation loss",
            f"{training.final_valid_loss:.3f}",
            f"from {training.first_valid_loss:.3f} before training",
        ),
        (
            "Trainable parameters",
            _short(training.trainable_parameters),
            f"{share:.2%} of {_short(training.total_parameters)}",
        ),
        ("Training speed", f"{training.tokens_per_second:,.0f}", "tokens a second"),
        ("Peak memory", f"{training.peak_memory_gb:.2f} GB", _predicted(training.predicted_peak_memory_gb)),
    ]


def _predicted(memory: float | None) -> str:
    return "while training" if memory is None else f"while training, {memory:.2f} GB predicted"


def _short(count: float) -> str:
    """A number of parameters as the reference prints it: 7,241.732M."""
    return f"{count / 1e6:,.3f}M"


def _package_text(name: str) -> str:
    return files("sqlora.report").joinpath(name).read_text(encoding="utf-8")
