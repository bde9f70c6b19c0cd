"""The text format, letter by letter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sqlora.errors import SqloraError
from sqlora.text import Example, read_examples, render_sql, write_examples
from sqlora.wikisql.form import LogicalForm
from sqlora.wikisql.layout import Table

HEADER = (
    "State/territory",
    "Text/background colour",
    "Format",
    "Current slogan",
    "Current series",
    "Notes",
)
SOUTH = Example(
    "1-1000181-1",
    "Tell me what the notes are for South Australia ",
    HEADER,
    ("text",) * 6,
    LogicalForm(5, 0, ((3, 0, "SOUTH AUSTRALIA"),)),
)
# DESIGN.md section 4, to the letter.
TEXT = """\
table: 1-1000181-1
columns: State/territory, Text/background colour, Format, Current slogan, Current series, Notes
Q: Tell me what the notes are for South Australia 
A: SELECT Notes FROM 1-1000181-1 WHERE Current slogan = 'SOUTH AUSTRALIA'"""  # noqa: W291

PLAYERS = Table("2-5-7", ("No.", "Player", "Points"), ("real", "text", "real"), ())


def test_text_is_the_reference_format() -> None:
    assert SOUTH.text == TEXT
    assert SOUTH.prompt.endswith("\nA:")
    assert SOUTH.completion.startswith(" SELECT ")
    assert SOUTH.prompt + SOUTH.completion == TEXT


@pytest.mark.parametrize(
    ("form", "sql"),
    [
        (LogicalForm(1, 3, ()), "SELECT COUNT Player FROM 2-5-7"),
        (LogicalForm(2, 5, ((0, 1, 7),)), "SELECT AVG Points FROM 2-5-7 WHERE No. > 7"),
        (
            LogicalForm(1, 0, ((1, 0, "O'Hara"), (2, 2, 2.5))),
            "SELECT Player FROM 2-5-7 WHERE Player = 'O'Hara' AND Points < 2.5",
        ),
        (LogicalForm(1, 0, ((0, 0, "21,671"),)), "SELECT Player FROM 2-5-7 WHERE No. = 21,671"),
        (LogicalForm(0, 0, ((1, 0, 7),)), "SELECT No. FROM 2-5-7 WHERE Player = '7'"),
    ],
)
def test_sql_is_the_reference_dialect(form: LogicalForm, sql: str) -> None:
    assert render_sql(form, PLAYERS) == sql


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.0, "2.0"), (-3.0, "-3.0"), (2.5, "2.5"), (7, "7"), (3801931620.0, "3801931620.0"), ("10th", "10th")],
)
def test_numbers_stand_as_the_source_has_them(value: float | str, text: str) -> None:
    assert render_sql(LogicalForm(1, 0, ((0, 0, value),)), PLAYERS).endswith(f" = {text}")


def test_examples_survive_the_file_and_text_stands_first(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    other = Example("2-5-7", "Wer spielt für Zürich?", PLAYERS.header, PLAYERS.types, LogicalForm(1, 0, ((2, 1, 2.0),)))
    write_examples(path, [SOUTH, other])
    assert read_examples(path) == [SOUTH, other]
    lines = path.read_text(encoding="utf-8").splitlines()
    assert all(line.startswith('{"text": "table: ') for line in lines)
    assert list(json.loads(lines[0])) == ["text", "table_id", "question", "header", "types", "sql"]
    assert "Zürich" in lines[1]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"text": TEXT + " "}, "a text that differs"),
        ({"question": "Tell me"}, "a text that differs"),
        ({"text": None}, "text None"),
        ({"header": ["a"]}, "types"),
        ({"sql": {"sel": 6, "agg": 0, "conds": []}}, "sel 6"),
    ],
)
def test_a_damaged_example_is_named_with_its_line(tmp_path: Path, change: dict[str, Any], found: str) -> None:
    path = tmp_path / "test.jsonl"
    write_examples(path, [SOUTH])
    line = path.read_text(encoding="utf-8")
    path.write_text(line + json.dumps(json.loads(line) | change) + "\n", encoding="utf-8")
    with pytest.raises(SqloraError) as caught:
        read_examples(path)
    assert caught.value.where == f"{path}:2"
    assert found in caught.value.found


def test_a_file_without_examples_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").touch()
    with pytest.raises(SqloraError, match="no example"):
        read_examples(tmp_path / "test.jsonl")
