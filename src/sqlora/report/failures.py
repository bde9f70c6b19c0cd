"""Groups the answers that are wrong by what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlora.report.cases import OUTCOMES, show_result
from sqlora.score.components import COMPONENTS, matches
from sqlora.score.judge import Verdict
from sqlora.score.predictions import Prediction
from sqlora.text import Example, render_sql

SHOWN = 3  # examples of a kind

# Of a query that ran and returned another result: the one part that differs from the gold query, or how many do.
_PARTS = {
    "aggregate": "another aggregate",
    "selected_column": "another column is selected",
    "condition_columns": "conditions on other columns, one too many, or one missing",
    "condition_operators": "another operator beside the right column",
    "condition_values": "another value beside the right column",
}
_SEVERAL = ("several parts", "more than one part of the query differs")
_NONE = ("no part", "the gold query's parts, yet another result")
_OTHER = ("other SQL", "a query beyond the text format, with another result")


@dataclass(frozen=True, slots=True)
class Failure:
    """A wrong answer; results are shortened, and empty where nothing ran."""

    index: int
    question: str
    table_id: str
    gold: str
    gold_result: str
    sql: str
    result: str


@dataclass(frozen=True, slots=True)
class Kind:
    """Wrong answers of one kind.

    ran: whether the query ran and returned another result; counts: system -> how many such answers.
    system: whose `examples` are shown.
    """

    name: str
    meaning: str
    ran: bool
    counts: Mapping[str, int]
    system: str
    examples: tuple[Failure, ...]


def group_failures(
    examples: Sequence[Example],
    predictions: Mapping[str, Sequence[Prediction]],
    verdicts: Mapping[str, Sequence[Verdict]],
) -> list[Kind]:
    """Kinds of wrong answers, the last system's most frequent ones first.

    Args:
        predictions, verdicts: system -> in the order of `examples`. The last system's examples are shown, those of
            another where it has none.
    """
    found: dict[tuple[bool, str, str], dict[str, list[int]]] = {}
    for system, judged in verdicts.items():
        for index, (example, verdict) in enumerate(zip(examples, judged, strict=True)):
            if not verdict.execution:
                kind = found.setdefault(_kind(example, verdict), {name: [] for name in verdicts})
                kind[system].append(index)
    systems = list(verdicts)[::-1]
    order = sorted(found, key=lambda key: ([-len(found[key][system]) for system in systems], key))
    kinds = []
    for key in order:
        ran, name, meaning = key
        indices = found[key]
        system = next(system for system in systems if indices[system])
        shown = tuple(
            _failure(index, examples[index], predictions[system][index], verdicts[system][index])
            for index in indices[system][:SHOWN]
        )
        counts = {name: len(indices[name]) for name in verdicts}
        kinds.append(Kind(name, meaning, ran, counts, system, shown))
    return kinds


def _kind(example: Example, verdict: Verdict) -> tuple[bool, str, str]:
    if verdict.outcome != "ok":
        return False, verdict.outcome, OUTCOMES[verdict.outcome]
    if verdict.form is None:
        return True, *_OTHER
    matched = matches(example, verdict.form)
    wrong = [name for name in COMPONENTS if name not in matched]
    if "condition_columns" in wrong:  # an operator or a value can only be right beside the right column
        wrong = [name for name in wrong if name not in ("condition_operators", "condition_values")]
    if len(wrong) == 1:
        return True, wrong[0].replace("_", " "), _PARTS[wrong[0]]
    return True, *(_SEVERAL if wrong else _NONE)


def _failure(index: int, example: Example, prediction: Prediction, verdict: Verdict) -> Failure:
    return Failure(
        index,
        example.question.strip(),
        example.table_id,
        render_sql(example.sql, example),
        show_result(verdict.gold_result),
        prediction.completion.strip(),
        show_result(verdict.result),
    )
