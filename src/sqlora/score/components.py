"""Which parts of a wrong query are right all the same."""

from __future__ import annotations

from collections import Counter

from sqlora.score.judge import comparable
from sqlora.text import Example
from sqlora.wikisql.form import LogicalForm

# Each part of a query, compared with the gold query's. The order of conditions does not matter.
COMPONENTS = ("aggregate", "selected_column", "condition_columns", "condition_operators", "condition_values")


def matches(example: Example, form: LogicalForm | None) -> set[str]:
    """The components in which a query agrees with the gold query of its example; none if there is no query.

    Conditions are taken apart as in Xu, Liu and Song, "SQLNet" (2017): an operator or a value is right at its own
    column only, so neither can be right unless the columns are.
    """
    if form is None:
        return set()
    gold = example.sql
    right = set()
    if form.agg == gold.agg:
        right.add("aggregate")
    if form.sel == gold.sel:
        right.add("selected_column")
    if _columns(form, example) == _columns(gold, example):
        right.add("condition_columns")
        if _operators(form, example) == _operators(gold, example):
            right.add("condition_operators")
        if _values(form, example) == _values(gold, example):
            right.add("condition_values")
    return right


# Counters: two conditions on one column are two, but a condition that is merely repeated counts once.
def _conditions(form: LogicalForm, example: Example) -> set[tuple[int, int, object]]:
    return {(column, operator, comparable(value, example.types[column])) for column, operator, value in form.conds}


def _columns(form: LogicalForm, example: Example) -> Counter[int]:
    return Counter(column for column, _, _ in _conditions(form, example))


def _operators(form: LogicalForm, example: Example) -> Counter[tuple[int, int]]:
    return Counter((column, operator) for column, operator, _ in _conditions(form, example))


def _values(form: LogicalForm, example: Example) -> Counter[tuple[int, object]]:
    return Counter((column, value) for column, _, value in _conditions(form, example))
