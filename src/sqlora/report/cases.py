"""Chooses test questions and gathers what a person needs to judge the answers to them."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlora.score.judge import Verdict, judge, shorten
from sqlora.score.predictions import Prediction
from sqlora.sql.execute import Runner, execute, open_database
from sqlora.text import Example, render_sql
from sqlora.wikisql.form import LogicalForm

# Every outcome of sqlora.score.judge, and what it means.
OUTCOMES = {
    "ok": "valid SQL that ran; right if it returned what the gold SQL returns",
    "no_stop": "went on until the token limit instead of ending in EOS",
    "empty": "wrote nothing",
    "bad_syntax": "is no query of the text format",
    "unsupported": "is SQL beyond one column, one aggregate and conditions joined by AND",
    "unknown_column": "names a column that the table does not have",
    "wrong_table": "asks another table",
    "bad_value": "compares a number column with a text without a number",
    "timeout": "ran for more than a second of computing time",
    "too_many_rows": "returned too many rows",
    "sql_error": "was refused by SQLite",
    "refused": "wants what the sandbox forbids",
    "too_large": "returned or needed too much",
    "worker_died": "ended the process that ran it",
}

_EXCERPT_ROWS = 4
_CELL_WIDTH = 60


@dataclass(frozen=True, slots=True)
class Answer:
    """What one system answered.

    mark: `right`, `wrong` (valid SQL with another result) or the outcome. note: what the mark leaves open.
    result: the values that it returned; empty if nothing ran.
    """

    sql: str
    mark: str
    note: str
    result: str


@dataclass(frozen=True, slots=True)
class Case:
    """One test question with its answers; texts are as the model wrote them, unprintable characters included.

    rows: an excerpt of the table, each row with whether the gold SQL reads it; row_count: how many the table has.
    """

    index: int
    example: Example
    rows: tuple[tuple[bool, tuple[str, ...]], ...]
    row_count: int
    gold: str
    gold_result: str
    answers: Mapping[str, Answer]


def spread(size: int, count: int) -> list[int]:
    """`count` indices, evenly spaced over `size` items; all of them if there are no more."""
    count = min(count, size)
    return [position * size // count for position in range(count)]


def make_cases(
    chosen: Sequence[int],
    examples: Sequence[Example],
    predictions: Mapping[str, Sequence[Prediction]],
    db: Path,
    *,
    execute_as: str,
) -> list[Case]:
    """Judge the chosen questions and gather what is to be shown of them.

    Args:
        chosen: indices into `examples`.
        predictions: system -> predictions, in the order of `examples`.
        db: tables.db of the dataset.
        execute_as: score.execute of params.yaml.
    """
    picked = [examples[index] for index in chosen]
    judged = {
        system: judge(picked, [every[index] for index in chosen], db, execute_as=execute_as)
        for system, every in predictions.items()
    }
    cases = []
    with open_database(db) as runner:
        for position, (index, example) in enumerate(zip(chosen, picked, strict=True)):
            answers = {
                system: _answer(predictions[system][index], verdicts[position]) for system, verdicts in judged.items()
            }
            gold = execute(example.sql, example, runner)
            rows, row_count = _excerpt(example, runner)
            sql = render_sql(example.sql, example)
            cases.append(Case(index, example, rows, row_count, sql, show_result(gold.rows), answers))
    return cases


def visible(text: str, keep: str = "") -> str:
    """The text with a visible sign for each character that prints nothing, moves the cursor or turns the line around.

    What a model writes may hold terminal commands, and marks that reverse the direction of the text behind them.

    Args:
        keep: characters to leave as they are, such as a line feed.
    """
    return "".join(char if char in keep or char.isprintable() else _sign(char) for char in text)


def show_result(rows: tuple[Any, ...] | None) -> str:
    """The values of a result, shortened; empty if nothing ran."""
    if rows is None:
        return ""
    return shorten(tuple(_cell(value) for value in rows)) if rows else "no rows"


def _sign(char: str) -> str:
    if char == "\n":
        return "⏎"
    if unicodedata.category(char) == "Zs":
        return " "
    if ord(char) < 0x20:
        return chr(0x2400 + ord(char))  # Unicode's pictures of the control characters
    return char.encode("unicode_escape").decode("ascii")


def _answer(prediction: Prediction, verdict: Verdict) -> Answer:
    note = ""
    if verdict.execution:
        mark = "right"
        note = "" if verdict.logical_form else "another query with the same result"
    elif verdict.outcome == "ok":
        mark = "wrong"
        note = "the gold query, yet another result" if verdict.logical_form else ""
    else:
        mark = verdict.outcome
        note = OUTCOMES.get(mark, "")
    return Answer(prediction.completion.strip(), mark, note, show_result(verdict.result))


def _excerpt(example: Example, runner: Runner) -> tuple[tuple[tuple[bool, tuple[str, ...]], ...], int]:
    """Up to four rows in the table's order, two of them such that the gold query's conditions select, if any do."""
    table = _rows(example, LogicalForm(0, 0, ()), runner)
    # Rows that are equal meet the same conditions, so a row needs no number to be recognised.
    read = set(_rows(example, example.sql, runner)) if example.sql.conds else set()
    indices = [index for index, row in enumerate(table) if row in read][:2]
    indices += [index for index in range(min(len(table), _EXCERPT_ROWS)) if index not in indices]
    shown = sorted(indices[:_EXCERPT_ROWS])
    return tuple((table[index] in read, tuple(map(_cell, table[index]))) for index in shown), len(table)


def _rows(example: Example, form: LogicalForm, runner: Runner) -> list[tuple[Any, ...]]:
    """All columns of the rows that the form's conditions select."""
    columns = [execute(LogicalForm(index, 0, form.conds), example, runner) for index in range(len(example.header))]
    if any(column.failure for column in columns):
        return []  # a table too long to be read whole is shown without an excerpt
    return list(zip(*(column.rows for column in columns), strict=True))


def _cell(value: Any) -> str:
    if value is None:
        return "NULL"
    # SQLite returns 7.0 for a 7 in a real column. From 1e16 on a float no longer tells all whole numbers apart.
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e16
    text = str(int(value)) if whole else str(value)
    return text if len(text) <= _CELL_WIDTH else text[: _CELL_WIDTH - 1] + "…"
