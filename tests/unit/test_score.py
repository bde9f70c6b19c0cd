"""Verdicts, shares and the list of errors, on predictions whose scores are known."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from sqlora.errors import SqloraError
from sqlora.score import (
    ERROR_COLUMNS,
    Prediction,
    error_rows,
    judge,
    read_predictions,
    same_form,
    shorten,
    summarise,
)
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
        ("SELECT Player FROM 1-10-1 WHERE No. = 7.0 AND Club = 'AJAX'", "ok", True, True),
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
def test_values_of_logical_forms(left: Any, right: Any, same: bool) -> None:
    assert same_form(LogicalForm(1, 0, (left,)), LogicalForm(1, 0, (right,)), TABLE.types) is same
    assert same_form(LogicalForm(1, 0, (right,)), LogicalForm(1, 0, (left,)), TABLE.types) is same


def test_selection_and_aggregate_count() -> None:
    assert not same_form(LogicalForm(1, 0, ()), LogicalForm(0, 0, ()), TABLE.types)
    assert not same_form(LogicalForm(1, 0, ()), LogicalForm(1, 1, ()), TABLE.types)
    assert not same_form(LogicalForm(1, 0, ()), LogicalForm(1, 0, ((0, 0, 7),)), TABLE.types)


PREDICTIONS = [
    Prediction(GOLD.completion, True, 20),
    Prediction(" SELECT Player FROM 1-10-1 WHERE No. = 7", True, 12),
    Prediction(" SELECT Team FROM 1-10-1", True, 5),
    Prediction(GOLD.completion, False, 100),
    Prediction(" SELECT Club FROM 1-10-1", True, 6),
    Prediction("", True, 0),
]


def test_shares_and_outcomes(db: Path) -> None:
    assert summarise(judge([GOLD] * 6, PREDICTIONS, db), PREDICTIONS) == {
        "execution_accuracy": 0.3333,
        "logical_form_accuracy": 0.1667,
        "valid_sql": 0.5,
        "stopped_at_eos": 0.8333,
        "outcomes": {"empty": 1, "no_stop": 1, "ok": 3, "unknown_column": 1},
    }


def test_error_rows_are_those_that_the_adapter_got_wrong(db: Path) -> None:
    adapter = judge([GOLD] * 6, PREDICTIONS, db)
    base_predictions = [Prediction("Ann\n", True, 2)] * 6
    base = judge([GOLD] * 6, base_predictions, db)
    rows = list(error_rows([GOLD] * 6, (base_predictions, base), (PREDICTIONS, adapter)))
    assert [row[0] for row in rows] == [2, 3, 4, 5]
    assert dict(zip(ERROR_COLUMNS, rows[2], strict=True)) == {
        "index": 4,
        "table_id": "1-10-1",
        "question": "?",
        "gold": "SELECT Player FROM 1-10-1 WHERE Club = 'Ajax' AND No. = 7",
        "gold_result": "ann",
        "base": "Ann",
        "base_outcome": "bad_syntax",
        "base_result": "",
        "adapter": "SELECT Club FROM 1-10-1",
        "adapter_outcome": "ok",
        "adapter_result": "ajax, ajax, lyon",
    }


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
    with pytest.raises(SqloraError, match=r"sql_error.*test question 0"):
        judge([GOLD], [Prediction("", True, 0)], db)


def lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def record(index: int, **changes: Any) -> dict[str, Any]:
    return {"index": index, "completion": " SELECT", "stopped": True, "tokens": 2} | changes


def test_predictions_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "base.jsonl"
    path.write_text(lines(record(0), record(1, stopped=False, completion="é")), encoding="utf-8")
    assert read_predictions(path, 2) == [Prediction(" SELECT", True, 2), Prediction("é", False, 2)]


@pytest.mark.parametrize(
    ("text", "where", "found"),
    [
        (lines(record(0)), "", "1 predictions"),
        (lines(record(0), record(1), record(2)), "", "3 predictions"),
        (lines(record(0), record(0)), ":2", "index 0"),
        (lines(record(1), record(0)), ":1", "index 1"),
        (lines(record(0), record(1, stopped="yes")), ":2", "'yes'"),
        (lines(record(0), record(1, completion=None)), ":2", "None"),
        (lines(record(0), record(1, tokens=True)), ":2", "'tokens': True"),
        (lines(record(0), {"index": 1}), ":2", "{'index': 1}"),
        (lines(record(0), record(1))[:-5], ":2", "no JSON"),
    ],
)
def test_damaged_predictions(tmp_path: Path, text: str, where: str, found: str) -> None:
    path = tmp_path / "base.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SqloraError) as caught:
        read_predictions(path, 2)
    assert caught.value.where == f"{path}{where}"
    assert found in caught.value.found
