"""What differs between two revisions, measure by measure, and by how much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlora.report.breakdown import Group
from sqlora.report.cases import OUTCOMES, show_result
from sqlora.report.facts import duration, short
from sqlora.report.results import MEASURES, Training
from sqlora.score.components import COMPONENTS, matches
from sqlora.score.revisions import Comparison, Run
from sqlora.score.statistics import Paired, pair, wilson
from sqlora.score.summary import BREAKDOWNS, breakdown_rows

Share = tuple[float, float, float]  # with the low and the high end of its 95% interval


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure of both revisions on the same questions; total: how many."""

    label: str
    first: Share
    second: Share
    paired: Paired

    @property
    def change(self) -> str:
        """In points, with its 95% interval: `+3.3 [-0.4, +7.0]`."""
        return points(self.paired)

    @property
    def significance(self) -> str:
        """McNemar's p and what it means; empty where no question changed."""
        return significance(self.paired)


@dataclass(frozen=True, slots=True)
class Changed:
    """A question that one of the two revisions alone got right; answers: (SQL, result) of each."""

    question: str
    table_id: str
    gold: str
    gold_result: str
    answers: tuple[tuple[str, str], tuple[str, str]]


def measures(comparison: Comparison) -> list[Measure]:
    """Scores first, then the parts of the query."""
    before, after = _flags(comparison.first), _flags(comparison.second)
    labels = MEASURES | {name: name.replace("_", " ").capitalize() for name in COMPONENTS}
    return [
        Measure(label, _share(before[name]), _share(after[name]), pair(before[name], after[name]))
        for name, label in labels.items()
    ]


def groups(comparison: Comparison) -> dict[str, list[tuple[Group, str]]]:
    """Breakdown -> its groups with the change of each; the accuracies' keys are `first` and `second`."""
    first, second = comparison.first, comparison.second
    found: dict[str, list[tuple[Group, str]]] = {name: [] for name in BREAKDOWNS}
    rows = zip(
        breakdown_rows("first", first.examples, first.verdicts),
        breakdown_rows("second", first.examples, second.verdicts),
        strict=True,
    )
    for before, after in rows:
        _, name, label, size, *shares = before
        members = [index for index, example in enumerate(first.examples) if BREAKDOWNS[str(name)](example) == label]
        paired = pair(*([run.verdicts[index].execution for index in members] for run in (first, second)))
        accuracy = {"first": tuple(shares[:3]), "second": tuple(after[4:7])}
        found[str(name)].append((Group(str(label), int(str(size)), accuracy), _brief(paired)))  # type: ignore[arg-type]
    return found


def changed(comparison: Comparison, *, fixed: bool, most: int) -> tuple[int, list[Changed]]:
    """How many questions only the second revision (fixed), or only the first, got right, and up to `most` of them."""
    indices = comparison.changed(fixed=fixed)
    first = comparison.first
    listed = [
        Changed(
            first.examples[index].question.strip(),
            first.examples[index].table_id,
            first.examples[index].completion.strip(),
            show_result(first.verdicts[index].gold_result),
            (_answer(first, index), _answer(comparison.second, index)),
        )
        for index in indices[:most]
    ]
    return len(indices), listed


def costs(first: Training, second: Training) -> list[tuple[str, str, str, str]]:
    """(what, its value in each, the change) of training: losses, time, memory; and differing versions."""
    rows = [
        _row("Iterations", first.iterations, second.iterations, "{:,.0f}".format),
        _row("Trainable parameters", first.trainable_parameters, second.trainable_parameters, short),
        _row("Training loss, at the end", first.final_train_loss, second.final_train_loss, "{:.4f}".format),
        _row("Validation loss, at the end", first.final_valid_loss, second.final_valid_loss, "{:.4f}".format),
        _row("Published iteration", first.published_iteration, second.published_iteration, "{:,.0f}".format),
        _row("Validation loss, published", first.published_valid_loss, second.published_valid_loss, "{:.4f}".format),
        _row("Tokens a second", first.tokens_per_second, second.tokens_per_second, "{:,.0f}".format),
        _row("Frozen layers", first.frozen_seconds, second.frozen_seconds, duration),
        _row("Training steps", first.train_seconds, second.train_seconds, duration),
        _row("Validation", first.validation_seconds, second.validation_seconds, duration),
        _row("Peak memory", first.peak_memory_gb, second.peak_memory_gb, "{:.2f} GB".format),
        _row("Predicted", first.predicted_peak_memory_gb, second.predicted_peak_memory_gb, "{:.2f} GB".format),
    ]
    made = [dict(training.environment) for training in (first, second)]
    for name, value in made[0].items():
        if made[1].get(name, value) != value:
            rows.append((name, value, made[1][name], ""))
    return rows


def points(paired: Paired) -> str:
    """The difference of the shares in points, with its 95% interval: `+3.3 [-0.4, +7.0]`."""
    low, high = (100 * bound for bound in paired.interval())
    return f"{100 * paired.difference:+.1f} [{low:+.1f}, {high:+.1f}]"


def significance(paired: Paired) -> str:
    """McNemar's p and what it means; empty where no question changed."""
    if not paired.fixed + paired.broken:
        return ""
    p = paired.p_value()
    return f"{'p < 0.001' if p < 0.001 else f'p = {p:.3f}'}: {'more than chance' if p < 0.05 else 'may well be chance'}"


def _flags(run: Run) -> dict[str, list[bool]]:
    """Measure or component -> whether each answer has it."""
    matched = [matches(example, verdict.form) for example, verdict in zip(run.examples, run.verdicts, strict=True)]
    return {
        "execution_accuracy": [verdict.execution for verdict in run.verdicts],
        "logical_form_accuracy": [verdict.logical_form for verdict in run.verdicts],
        "valid_sql": [verdict.outcome == "ok" for verdict in run.verdicts],
        "stopped_at_eos": [prediction.stopped for prediction in run.predictions],
        **{name: [name in parts for parts in matched] for name in COMPONENTS},
    }


def _share(flags: Sequence[bool]) -> Share:
    return (sum(flags) / len(flags), *wilson(sum(flags), len(flags)))


def _row(
    label: str, first: float | None, second: float | None, show: Callable[[float], str]
) -> tuple[str, str, str, str]:
    shown = ["not recorded" if value is None else show(value) for value in (first, second)]
    if first is None or second is None or not first or shown[0] == shown[1]:
        return label, shown[0], shown[1], ""
    return label, shown[0], shown[1], f"{100 * (second / first - 1):+.0f}%"


def _brief(paired: Paired) -> str:
    if not paired.fixed + paired.broken:
        return "no change"
    return f"{100 * paired.difference:+.1f} ({paired.fixed:,} fixed, {paired.broken:,} broken)"


def _answer(run: Run, index: int) -> tuple[str, str]:
    verdict = run.verdicts[index]
    ran = verdict.result is not None
    said = f"returns {show_result(verdict.result)}" if ran else f"{verdict.outcome}: {OUTCOMES[verdict.outcome]}"
    return run.predictions[index].completion.strip(), said
