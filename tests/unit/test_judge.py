"""Verdicts on predictions whose scores are known, and the official evaluation beside ours."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from official import evaluate

from sqlora.errors import SqloraError
from sqlora.score.judge import judge, official_form, shorten, strict_form
from sqlora.score.official import write_predictions, write_questions
from sqlora.score.predictions import Prediction
from sqlora.sql.execute import build_database
from sqlora.text import Example
from sqlora.wikisql.layout import LogicalForm, Table

TABLE = Table(
    "1-10-1",
    ("No.", "Player", "Club"),
    ("real", "text", "text"),
    ((7, "Ann", "Ajax"), (8, "Bob", "Ajax"), (9, "Cleo", "Lyon")),
)


def example(form: LogicalForm) -> Example:
    return Example(TABLE.id, "?", TABLE.header, TABLE.types, form)


# Who plays for Ajax and has 7? -> ann
GOLD = example(LogicalForm(1, 0, ((2, 0, "Ajax"), (0, 0, 7))))


@pytest.fixture
def db(tmp_path: Path) -> Path:
    build_database(tmp_path / "tables.db", [TABLE])
    return tmp_path / "tables.db"


@pytest.mark.parametrize(
    ("completion", "outcome", "logical_form", "execution"),
    [
        (" SELECT Player FROM 1-10-1 WHERE Club = 'Ajax' AND No. = 7", "ok", True, True),
        ("SELECT Player FROM 1-10-1 WHERE No. = 7 AND Club = 'Ajax'", "ok", True, True),
        ("SELECT Player FROM 1-10-1 WHERE No. = 7 AND Club = 'AJAX'", "ok", True, True),
        ("SELECT Player FROM 1-10-1 WHERE No. = 7.0 AND Club = 'AJAX'", "ok", False, True),
        ("SELECT Player FROM 1-10-1 WHERE No. = 7 AND No. = 7 AND Club = 'AJAX'", "ok", True, True),
        ("SELECT Player FROM 1-10-1 WHERE No. = 7", "ok", False, True),
        ("SELECT MAX Player FROM 1-10-1 WHERE Club = 'Ajax' AND No. = 7", "ok", False, True),
        ("SELECT Player FROM 1-10-1 WHERE Club = 'Ajax'", "ok", False, False),
        ("SELECT Player FROM 1-10-1 WHERE Club = 'Ajax' AND No. > 7", "ok", False, False),
        ("SELECT Club FROM 1-10-1 WHERE Club = 'Ajax' AND No. = 7", "ok", False, False),
        ("SELECT Player FROM 1-10-1 WHERE Club = 'Lyon' AND No. = 7", "ok", False, False),
        ("", "empty", False, False),
        ("Ann", "bad_syntax", False, False),
        ("SELECT Name FROM 1-10-1", "unknown_column", False, False),
        ("SELECT Player FROM 1-10-2 WHERE Club = 'Ajax' AND No. = 7", "wrong_table", False, False),
    ],
)
def test_verdicts(db: Path, completion: str, outcome: str, logical_form: bool, execution: bool) -> None:
    (verdict,) = judge([GOLD], [Prediction(completion, True, 20)], db)
    assert (verdict.outcome, verdict.logical_form, verdict.execution) == (outcome, logical_form, execution)
    assert verdict.gold_result == ("ann",)
    assert (verdict.result is not None) == (verdict.form is not None) == (outcome == "ok")
    assert bool(verdict.detail) == (outcome not in ("ok", "empty"))


def test_the_gold_text_is_right_even_where_the_parser_cannot_read_it(db: Path) -> None:
    odd = example(LogicalForm(1, 0, ((0, 0, "7 km"),)))
    (verdict,) = judge([odd], [Prediction(odd.completion + "\n", True, 9)], db)
    assert (verdict.outcome, verdict.execution, verdict.logical_form) == ("ok", True, True)
    (other,) = judge([odd], [Prediction(odd.completion + " x", True, 9)], db)
    assert (other.outcome, other.execution) == ("bad_syntax", False)


def test_a_number_column_compared_with_a_text_without_a_number(db: Path) -> None:
    (verdict,) = judge([GOLD], [Prediction("SELECT Player FROM 1-10-1 WHERE No. = 'seven'", True, 9)], db)
    assert (verdict.outcome, verdict.execution, verdict.result) == ("bad_value", False, None)


def test_a_prediction_that_a_constraint_closed_is_a_query_like_any_other(db: Path) -> None:
    (verdict,) = judge([GOLD], [Prediction(GOLD.completion, False, 20, closed=True)], db)
    assert (verdict.outcome, verdict.logical_form, verdict.execution) == ("ok", True, True)


def test_a_prediction_that_did_not_stop_is_wrong_whatever_it_says(db: Path) -> None:
    (verdict,) = judge([GOLD], [Prediction(GOLD.completion, False, 100)], db)
    assert (verdict.outcome, verdict.logical_form, verdict.execution) == ("no_stop", False, False)
    assert verdict.form is None
    assert verdict.result is None


@pytest.mark.parametrize(
    ("gold", "completion", "execution"),
    [
        (LogicalForm(2, 0, ()), "SELECT Club FROM 1-10-1 WHERE No. < 9", False),
        (LogicalForm(2, 0, ((0, 2, 9),)), "SELECT Club FROM 1-10-1 WHERE No. = 7", False),  # ajax, ajax is not ajax
        (LogicalForm(0, 3, ()), "SELECT COUNT Club FROM 1-10-1", True),
        (LogicalForm(1, 0, ((0, 1, 99),)), "SELECT Club FROM 1-10-1 WHERE Club = ''", True),
    ],
)
def test_results_are_compared_as_lists(db: Path, gold: LogicalForm, completion: str, execution: bool) -> None:
    (verdict,) = judge([example(gold)], [Prediction(completion, True, 9)], db)
    assert verdict.execution is execution


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ((0, 0, 7), (0, 0, 7.0), True),
        ((0, 0, "7"), (0, 0, 7), True),
        ((0, 0, "1,234"), (0, 0, 1234), True),
        ((0, 0, "1995-96"), (0, 0, "1995-96"), True),
        ((0, 0, "10TH"), (0, 0, "10th"), True),
        ((0, 0, 12345678901234567890), (0, 0, 1.2345678901234567e19), True),
        ((0, 0, 7), (0, 0, 8), False),
        ((0, 0, 7), (0, 1, 7), False),
        ((0, 0, 7), (1, 0, 7), False),
        ((1, 0, "Ann"), (1, 0, "ANN"), True),
        ((1, 0, 7), (1, 0, "7"), True),
        ((1, 0, "7.0"), (1, 0, "7"), False),
        ((1, 0, "Ann "), (1, 0, "Ann"), False),
    ],
)
def test_values_of_strict_logical_forms(left: Any, right: Any, same: bool) -> None:
    assert strict_form(LogicalForm(1, 0, (left,)), LogicalForm(1, 0, (right,)), TABLE.types) is same
    assert strict_form(LogicalForm(1, 0, (right,)), LogicalForm(1, 0, (left,)), TABLE.types) is same


def test_selection_and_aggregate_count() -> None:
    assert not strict_form(LogicalForm(1, 0, ()), LogicalForm(0, 0, ()), TABLE.types)
    assert not strict_form(LogicalForm(1, 0, ()), LogicalForm(1, 1, ()), TABLE.types)
    assert not strict_form(LogicalForm(1, 0, ()), LogicalForm(1, 0, ((0, 0, 7),)), TABLE.types)


def test_shortened_results() -> None:
    assert shorten(None) == ""
    assert shorten(()) == ""
    assert shorten((None, 2.5)) == "NULL, 2.5"
    assert shorten(("x" * 50, "y" * 50)) == "x" * 50 + ", " + "y" * 28 + "… (2 rows)"


def test_a_gold_query_that_fails_stops_the_scoring(db: Path) -> None:
    bad = example(LogicalForm(1, 0, ((0, 0, "seven"),)))
    with pytest.raises(SqloraError, match=r"bad_value.*test question 1"):
        judge([GOLD, bad], [Prediction("", True, 0)] * 2, db)
    with sqlite3.connect(db) as connection:
        connection.execute("DROP TABLE table_1_10_1")
    with pytest.raises(SqloraError, match=r"wrong_table.*test question 0"):
        judge([GOLD], [Prediction("", True, 0)], db)


@pytest.mark.parametrize(
    ("gold", "completion", "official", "strict", "why"),
    [
        # (execution, logical form) by the official measures and by the strict ones.
        (LogicalForm(1, 0, ((0, 0, 7.0),)), "SELECT Player FROM 1-10-1 WHERE No. = 7", (1, 0), (1, 1), "number_form"),
        (LogicalForm(1, 0, ((0, 0, 7),)), "SELECT Player FROM 1-10-1 WHERE No. = 7.0", (1, 0), (1, 1), "number_form"),
        # Both conditions become No. < 7 in the official engine, which then finds nobody; so does the gold query here.
        (LogicalForm(1, 0, ((0, 2, 7),)), "SELECT Player FROM 1-10-1 WHERE No. < 9 AND No. < 7", (1, 0), (1, 0), ""),
        (
            LogicalForm(1, 0, ((0, 2, 9),)),
            "SELECT Player FROM 1-10-1 WHERE No. < 8 AND No. < 9",
            (1, 0),
            (0, 0),
            "overwritten_condition",
        ),
        (
            LogicalForm(1, 0, ((0, 1, 7), (0, 2, 9))),
            "SELECT Player FROM 1-10-1 WHERE No. = 8",
            (0, 0),
            (1, 0),
            "overwritten_condition",
        ),
    ],
)
def test_strict_measures(
    db: Path, gold: LogicalForm, completion: str, official: tuple[int, int], strict: tuple[int, int], why: str
) -> None:
    (verdict,) = judge([example(gold)], [Prediction(completion, True, 9)], db)
    assert (verdict.execution, verdict.logical_form) == official
    assert (verdict.strict_execution, verdict.strict_logical_form) == strict
    assert verdict.disagreements == ((why,) if why else ())


def test_the_order_of_rows_matters_to_the_official_measure_alone(tmp_path: Path) -> None:
    # An index of SQLite's own would do the same; two columns that hold the same values in another order stand for it.
    table = Table("1-10-1", ("No.", "Player", "Club"), TABLE.types, ((1, "a", "b"), (2, "b", "a")))
    build_database(tmp_path / "tables.db", [table])
    (verdict,) = judge(
        [example(LogicalForm(1, 0, ()))], [Prediction("SELECT Club FROM 1-10-1", True, 9)], tmp_path / "tables.db"
    )
    assert (verdict.execution, verdict.strict_execution, verdict.disagreements) == (False, True, ("row_order",))


WORDS = (
    "7",
    "8",
    "7.0",
    "1,0",
    "1,000",
    "1e1",
    ".5",
    "+7",
    "-8",
    "10th",
    "1995-96",
    "9",
    "08",
    "9.",
    "99999999999999999999",
)
TEXTS = ("Ajax", "ajax", "LYON", "Ann", "", "O'Hara", "7", "7.0", "x AND y")


def random_form(rng: random.Random) -> LogicalForm:
    conds = []
    for _ in range(rng.choice((0, 1, 1, 2, 2, 3))):
        column = rng.randrange(3)
        value = rng.choice((7, 8, 9, 7.0, 8.5, "7", "1,000", "10th")) if column == 0 else rng.choice(TEXTS)
        conds.append((column, rng.choice((0, 0, 1, 2)), value))
    return LogicalForm(rng.randrange(3), rng.choice((0, 0, 1, 2, 3, 4, 5)), tuple(conds))


def random_completion(rng: random.Random, gold: LogicalForm) -> str:
    """The gold query, or something near it, in any of the ways in which it can be written."""
    form = gold if rng.random() < 0.7 else random_form(rng)
    terms = []
    for column, operator, value in form.conds:
        if column == 0:
            shown = rng.choice((str(value), f"'{value}'", rng.choice(WORDS)))
        else:
            shown = f"'{rng.choice((str(value), str(value).upper()))}'"
        terms.append(f"{TABLE.header[column]} {'=><'[operator]} {shown}")
    rng.shuffle(terms)
    aggregate = ("", "MAX ", "MIN ", "COUNT ", "SUM ", "AVG ")[form.agg]
    sql = f" SELECT {aggregate}{TABLE.header[form.sel]} FROM 1-10-1" + " WHERE " * bool(terms) + " AND ".join(terms)
    return sql if rng.random() < 0.95 else rng.choice(("", "nonsense", sql + " LIMIT 1"))


def test_the_official_evaluation_of_our_files_gives_our_figures(db: Path, tmp_path: Path) -> None:
    rng = random.Random(1)
    examples = [example(random_form(rng)) for _ in range(3000)]
    predictions = [Prediction(random_completion(rng, e.sql), rng.random() < 0.97, 9) for e in examples]
    verdicts = judge(examples, predictions, db)
    write_questions(tmp_path / "test.jsonl", examples)
    write_predictions(tmp_path / "adapter.jsonl", verdicts)
    execution, logical_form = evaluate(tmp_path / "test.jsonl", db, tmp_path / "adapter.jsonl")
    assert [verdict.execution for verdict in verdicts] == execution
    assert [verdict.logical_form for verdict in verdicts] == logical_form
    # The comparison says something only if there are enough of each kind.
    assert 500 < sum(execution) < 2500
    assert 300 < sum(logical_form) < 2500
    found = {why for verdict in verdicts for why in verdict.disagreements}
    assert {"overwritten_condition", "number_form"} <= found


def test_official_logical_forms() -> None:
    gold = LogicalForm(1, 0, ((0, 0, 7), (2, 0, "Ajax")))
    assert official_form(LogicalForm(1, 0, ((2, 0, "AJAX"), (0, 0, 7))), ("AJAX", "7"), gold)
    assert not official_form(LogicalForm(1, 0, ((2, 0, "AJAX"), (0, 0, 7))), ("AJAX", "7.0"), gold)
    assert not official_form(LogicalForm(1, 0, ((2, 0, "AJAX"),)), ("AJAX",), gold)
