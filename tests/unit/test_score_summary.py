"""What is counted in score.json and breakdown.csv, and the lists of questions."""

from __future__ import annotations

from pathlib import Path

import pytest

from sqlora.score.components import COMPONENTS, matches
from sqlora.score.judge import judge
from sqlora.score.lists import CHANGE_COLUMNS, ERROR_COLUMNS, Judged, change_rows, error_rows
from sqlora.score.predictions import Prediction
from sqlora.score.statistics import wilson
from sqlora.score.summary import BREAKDOWN_COLUMNS, breakdown_rows, chart_rows, compare, headline, summarise
from sqlora.sql.execute import build_database
from sqlora.text import Example
from sqlora.wikisql.layout import LogicalForm, Table

TABLE = Table(
    "1-10-1",
    ("No.", "Player", "Club"),
    ("real", "text", "text"),
    ((7, "Ann", "Ajax"), (8, "Bob", "Ajax"), (9, "Cleo", "Lyon")),
)


def example(sel: int, agg: int, *conds: tuple[int, int, str | int]) -> Example:
    return Example(TABLE.id, "?", TABLE.header, TABLE.types, LogicalForm(sel, agg, conds))


GOLD = example(1, 0, (2, 0, "Ajax"), (0, 0, 7))
ADAPTER = [
    Prediction(GOLD.completion, True, 20),
    Prediction(" SELECT Player FROM 1-10-1 WHERE No. = 7", True, 12),
    Prediction(" SELECT Team FROM 1-10-1", True, 5),
    Prediction(GOLD.completion, False, 100),
    Prediction(" SELECT Club FROM 1-10-1", True, 6),
    Prediction("", True, 0),
]
BASE = [Prediction("Ann\n", True, 2), Prediction("", True, 0), *[Prediction("Ann\n", True, 2)] * 3, ADAPTER[0]]
EXAMPLES = [GOLD] * 6


@pytest.fixture
def judged(tmp_path: Path) -> dict[str, Judged]:
    build_database(tmp_path / "tables.db", [TABLE])
    systems = {"base": BASE, "adapter": ADAPTER}
    return {name: Judged(made, judge(EXAMPLES, made, tmp_path / "tables.db")) for name, made in systems.items()}


def test_what_dvc_shows_is_short_and_has_intervals(judged: dict[str, Judged]) -> None:
    summary = summarise(EXAMPLES, ADAPTER, judged["adapter"].verdicts)
    low, high = wilson(2, 6)
    shown = headline(summary)
    assert list(shown) == [
        "execution_accuracy",
        "execution_interval",
        "logical_form_accuracy",
        "logical_form_interval",
        "valid_sql",
        "stopped_at_eos",
    ]
    assert (shown["execution_accuracy"], shown["execution_interval"]) == (0.3333, f"{low:.3f} to {high:.3f}")
    assert (shown["valid_sql"], shown["stopped_at_eos"]) == (0.5, 0.8333)
    row = {"measure": "adapter, execution", "share": 0.3333, "low": round(low, 4), "high": round(high, 4)}
    rows = chart_rows({"adapter": summary})
    assert rows[0] == row
    assert len(rows) == 4


def test_shares_intervals_and_outcomes(judged: dict[str, Judged]) -> None:
    summary = summarise(EXAMPLES, ADAPTER, judged["adapter"].verdicts)
    intervals = summary.pop("intervals")
    assert summary == {
        "execution_accuracy": 0.3333,
        "logical_form_accuracy": 0.1667,
        "valid_sql": 0.5,
        "stopped_at_eos": 0.8333,
        "strict_execution_accuracy": 0.3333,
        "strict_logical_form_accuracy": 0.1667,
        "components": {
            "aggregate": 0.5,
            "selected_column": 0.3333,
            "condition_columns": 0.1667,
            "condition_operators": 0.1667,
            "condition_values": 0.1667,
        },
        "outcomes": {"empty": 1, "no_stop": 1, "ok": 3, "unknown_column": 1},
        "disagreements": {},
    }
    assert set(intervals) == {*COMPONENTS, *(name for name in summary if isinstance(summary[name], float))}
    assert intervals["execution_accuracy"] == pytest.approx(wilson(2, 6), abs=5e-5)


def test_disagreements_are_counted(tmp_path: Path) -> None:
    build_database(tmp_path / "tables.db", [TABLE])
    examples = [example(1, 0, (0, 0, 7))] * 2
    predictions = [Prediction("SELECT Player FROM 1-10-1 WHERE No. = 7.0", True, 9), Prediction("", True, 0)]
    summary = summarise(examples, predictions, judge(examples, predictions, tmp_path / "tables.db"))
    assert summary["disagreements"] == {"number_form": 1}
    assert (summary["logical_form_accuracy"], summary["strict_logical_form_accuracy"]) == (0.0, 0.5)


@pytest.mark.parametrize(
    ("form", "right"),
    [
        (GOLD.sql, set(COMPONENTS)),
        (LogicalForm(1, 0, ((0, 0, "7.0"), (2, 0, "AJAX"))), set(COMPONENTS)),
        (LogicalForm(1, 3, GOLD.sql.conds), set(COMPONENTS) - {"aggregate"}),
        (LogicalForm(2, 0, GOLD.sql.conds), set(COMPONENTS) - {"selected_column"}),
        (LogicalForm(1, 0, ((2, 0, "Ajax"), (0, 1, 7))), set(COMPONENTS) - {"condition_operators"}),
        (LogicalForm(1, 0, ((2, 0, "Lyon"), (0, 0, 7))), set(COMPONENTS) - {"condition_values"}),
        (LogicalForm(1, 0, ((2, 0, "Ajax"),)), {"aggregate", "selected_column"}),
        (None, set()),
    ],
)
def test_components(form: LogicalForm | None, right: set[str]) -> None:
    assert matches(GOLD, form) == right


def test_two_conditions_on_one_column_are_two() -> None:
    gold = example(1, 0, (0, 1, 7), (0, 2, 9))
    rest = {"aggregate", "selected_column"}
    assert matches(gold, LogicalForm(1, 0, ((0, 1, 7),))) == rest
    assert matches(gold, LogicalForm(1, 0, ((0, 1, 7), (0, 1, 9)))) == rest | {"condition_columns", "condition_values"}
    assert matches(gold, LogicalForm(1, 0, ((0, 2, 9), (0, 1, 7), (0, 1, 7)))) == set(COMPONENTS)


def test_comparison_of_base_and_adapter(judged: dict[str, Judged]) -> None:
    comparison = compare(judged["base"].verdicts, judged["adapter"].verdicts)
    execution = comparison["execution"]
    assert {name: execution[name] for name in ("both_right", "fixed", "broken", "both_wrong", "difference")} == {
        "both_right": 0,
        "fixed": 2,
        "broken": 1,
        "both_wrong": 3,
        "difference": 0.1667,
    }
    assert execution["p_value"] == 1.0
    assert execution["interval"][0] < 0.1667 < execution["interval"][1]
    assert comparison["logical_form"]["fixed"] == 1


def test_breakdown(tmp_path: Path) -> None:
    build_database(tmp_path / "tables.db", [TABLE])
    examples = [GOLD, example(0, 1), example(0, 1, (2, 0, "Ajax")), example(1, 0, (1, 0, "Ann"))]
    predictions = [Prediction(e.completion, True, 9) for e in examples[:3]] + [Prediction("", True, 0)]
    verdicts = judge(examples, predictions, tmp_path / "tables.db")
    rows = list(breakdown_rows("adapter", examples, verdicts))
    assert [[*row[1:4], row[4], row[7]] for row in rows] == [
        ["aggregate", "none", 2, 0.5, 0.5],
        ["aggregate", "MAX", 2, 1.0, 1.0],
        ["conditions", "0", 1, 1.0, 1.0],
        ["conditions", "1", 2, 0.5, 0.5],
        ["conditions", "2", 1, 1.0, 1.0],
        ["selected_type", "text", 2, 0.5, 0.5],
        ["selected_type", "real", 2, 1.0, 1.0],
        ["condition_types", "none", 1, 1.0, 1.0],
        ["condition_types", "text", 2, 0.5, 0.5],
        ["condition_types", "real and text", 1, 1.0, 1.0],
    ]
    assert all(len(row) == len(BREAKDOWN_COLUMNS) and row[0] == "adapter" for row in rows)
    assert rows[0][5:7] == pytest.approx(wilson(1, 2), abs=5e-5)


def test_error_rows(judged: dict[str, Judged]) -> None:
    rows = list(error_rows(EXAMPLES, judged["base"], judged["adapter"]))
    # 0 and 1 are there as examples of what the base model alone did: no query at all, nothing at all.
    assert [row[0] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert dict(zip(ERROR_COLUMNS, rows[4], strict=True)) == {
        "index": 4,
        "table_id": "1-10-1",
        "question": "?",
        "gold": "SELECT Player FROM 1-10-1 WHERE Club = 'Ajax' AND No. = 7",
        "gold_result": "ann",
        "base": "Ann",
        "base_outcome": "bad_syntax",
        "base_result": "",
        "adapter": "SELECT Club FROM 1-10-1",
        "adapter_outcome": "wrong",
        "adapter_result": "ajax, ajax, lyon",
    }


def test_every_outcome_has_an_example_and_none_has_too_many(tmp_path: Path) -> None:
    build_database(tmp_path / "tables.db", [TABLE])
    examples = [GOLD] * 20
    right = [Prediction(GOLD.completion, True, 20)] * 20
    base = [Prediction("nonsense", True, 2)] * 19 + [Prediction("", True, 0)]
    systems = [Judged(made, judge(examples, made, tmp_path / "tables.db")) for made in (base, right)]
    rows = list(error_rows(examples, *systems))
    assert [row[0] for row in rows] == [0, 1, 2, 19]


def test_change_rows_show_the_broken_ones_first(judged: dict[str, Judged]) -> None:
    rows = list(change_rows(EXAMPLES, judged["base"], judged["adapter"]))
    assert [row[:2] for row in rows] == [["broken", 5], ["fixed", 0], ["fixed", 1]]
    assert dict(zip(CHANGE_COLUMNS, rows[0], strict=True))["adapter_outcome"] == "empty"
