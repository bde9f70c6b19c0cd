"""Reading WikiSQL's official layout, and refusing what is not in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sqlora.errors import SqloraError
from sqlora.jsonl import LONGEST_LINE
from sqlora.wikisql.layout import LogicalForm, Question, Table, read_questions, read_tables

TABLE = {"id": "1-10-1", "header": ["No.", "Player"], "types": ["real", "text"], "rows": [[7, "Müller"], [8.5, None]]}
QUESTION = {
    "phase": 1,
    "table_id": "1-10-1",
    "question": "Who wears 7? ",
    "sql": {"sel": 1, "agg": 0, "conds": [[0, 0, 7]]},
}


def write(path: Path, *records: Any) -> Path:
    lines = (r if isinstance(r, str) else json.dumps(r) for r in records)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_reads_tables_and_questions(tmp_path: Path) -> None:
    tables = read_tables(write(tmp_path / "dev.tables.jsonl", TABLE | {"caption": "ignored"}))
    questions = read_questions(write(tmp_path / "dev.jsonl", QUESTION), tables)
    assert tables == {"1-10-1": Table("1-10-1", ("No.", "Player"), ("real", "text"), ((7, "Müller"), (8.5, None)))}
    assert questions == [Question("1-10-1", "Who wears 7? ", LogicalForm(1, 0, ((0, 0, 7),)))]


def test_a_form_survives_its_json() -> None:
    form = LogicalForm(2, 3, ((0, 1, 2.5), (1, 0, "x")))
    assert form.to_json() == {"sel": 2, "agg": 3, "conds": [[0, 1, 2.5], [1, 0, "x"]]}


@pytest.mark.parametrize(
    ("damaged", "found"),
    [
        ('{"id": "1-10-2", "header": ["a"]', "no JSON"),
        ("[1]", "a JSON list"),
        ("", "a blank line"),
        ('{"id": NaN}', "NaN"),
        ('{"id": "\\ud800"}', "no JSON"),
        ("[" * 100_000, "no JSON"),
        (TABLE | {"id": 5}, "id 5"),
        ({"header": ["a"]}, "no key id"),
        (TABLE | {"header": []}, "header []"),
        (TABLE | {"header": ["a", 1]}, "header ['a', 1]"),
        (TABLE | {"types": ["real"]}, "types ['real']"),
        (TABLE | {"types": ["real", "date"]}, "types ['real', 'date']"),
        (TABLE | {"rows": {}}, "rows {}"),
        (TABLE | {"rows": [[1, "a"], [2]]}, "row 2"),
        (TABLE | {"rows": [[1, True]]}, "row 1"),
        (TABLE, "a second table 1-10-1"),
    ],
)
def test_a_damaged_table_is_named_with_its_line(tmp_path: Path, damaged: Any, found: str) -> None:
    path = write(tmp_path / "dev.tables.jsonl", TABLE, damaged)
    with pytest.raises(SqloraError) as caught:
        read_tables(path)
    assert caught.value.where == f"{path}:2"
    assert found in caught.value.found


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"table_id": "1-10-9"}, "table 1-10-9, which is missing"),
        ({"question": None}, "question None"),
        ({"sql": None}, "sql None"),
        ({"sql": {"sel": 2, "agg": 0, "conds": []}}, "sel 2"),
        ({"sql": {"sel": -1, "agg": 0, "conds": []}}, "sel -1"),
        ({"sql": {"sel": True, "agg": 0, "conds": []}}, "sel True"),
        ({"sql": {"sel": 0, "agg": 6, "conds": []}}, "agg 6"),
        ({"sql": {"sel": 0, "agg": 0}}, "sql"),
        ({"sql": {"sel": 0, "agg": 0, "conds": [[2, 0, "x"]]}}, "condition column 2"),
        ({"sql": {"sel": 0, "agg": 0, "conds": [[0, 3, "x"]]}}, "operator 3"),
        ({"sql": {"sel": 0, "agg": 0, "conds": [[0, 0]]}}, "condition [0, 0]"),
        ({"sql": {"sel": 0, "agg": 0, "conds": [[0, 0, None]]}}, "condition [0, 0, None]"),
        ({"sql": {"sel": 0, "agg": 0, "conds": [[0, 0, True]]}}, "condition [0, 0, True]"),
    ],
)
def test_a_damaged_question_is_named_with_its_line(tmp_path: Path, change: dict[str, Any], found: str) -> None:
    tables = read_tables(write(tmp_path / "dev.tables.jsonl", TABLE))
    path = write(tmp_path / "dev.jsonl", QUESTION, QUESTION, QUESTION | change)
    with pytest.raises(SqloraError) as caught:
        read_questions(path, tables)
    assert caught.value.where == f"{path}:3"
    assert found in caught.value.found


def test_an_infinite_value_is_damage(tmp_path: Path) -> None:
    tables = read_tables(write(tmp_path / "dev.tables.jsonl", TABLE))
    with pytest.raises(SqloraError, match="condition"):
        read_questions(write(tmp_path / "dev.jsonl", json.dumps(QUESTION).replace(", 7]", ", 1e999]")), tables)


def test_a_missing_file_and_bytes_that_are_not_utf_8(tmp_path: Path) -> None:
    with pytest.raises(SqloraError, match="No such file"):
        read_tables(tmp_path / "dev.tables.jsonl")
    path = tmp_path / "test.tables.jsonl"
    path.write_bytes(json.dumps(TABLE).encode() + b"\n\xff\xfe\n")
    with pytest.raises(SqloraError, match="utf-8") as caught:
        read_tables(path)
    assert caught.value.where == f"{path}:2"


def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "dev.tables.jsonl"
    with open(path, "wb") as handle:
        handle.write(json.dumps(TABLE).encode() + b"\n")
        handle.truncate(LONGEST_LINE * 3)  # NUL bytes that take no space on the disk
    with pytest.raises(SqloraError, match="a line of more than") as caught:
        read_tables(path)
    assert caught.value.where == f"{path}:2"
