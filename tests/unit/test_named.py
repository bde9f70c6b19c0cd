"""SQL that is executed as text: names as the model saw them, and nothing that escapes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from sqlora.errors import SqloraError
from sqlora.score.judge import judge
from sqlora.score.official import write_predictions
from sqlora.score.predictions import Prediction
from sqlora.sql.execute import Execution, build_database
from sqlora.sql.named import execute_text, open_named
from sqlora.text import Example
from sqlora.wikisql.layout import LogicalForm, Table

TABLE = Table(
    "1-10-1",
    ("No.", "Player", "Club", "player", "", 'a "b"'),
    ("real", "text", "text", "text", "text", "text"),
    (
        (7, "Ann", "Ajax", "x", "Élan", "z"),
        (8, "Bob", "Ajax", "x", "y", "z"),
        (9, "Cleo", "Lyon", "1-10-1", "y", "z"),
    ),
)


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "tables 100%?.db"
    build_database(path, [TABLE])
    return path


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ('SELECT "Player" FROM "1-10-1" WHERE "No." = 7', Execution(("ann",))),
        ("SELECT Player FROM 1-10-1 WHERE Club LIKE 'LY%'", Execution(("cleo",))),
        ("SELECT Player FROM `1-10-1` WHERE Club = 'AJAX' ORDER BY [No.] DESC LIMIT 1;", Execution(("bob",))),
        ("SELECT COUNT(DISTINCT Club) FROM 1-10-1", Execution((2,))),
        ("SELECT No FROM 1-10-1", Execution(failure="unknown_column")),
        # The id is quoted where it is a name, not within a text, and only as a whole.
        ("SELECT count(*) FROM 1-10-1 WHERE \"player (4)\" = '1-10-1'", Execution((1,))),
        ("SELECT 1 FROM 1-10-11", Execution(failure="bad_syntax")),
        ('SELECT "column 5" FROM 1-10-1 LIMIT 1', Execution(("élan",))),
        ("SELECT Player FROM 1-10-1 WHERE \"column 5\" = 'ÉLAN'", Execution(("ann",))),
        ('SELECT "a ""b""" FROM 1-10-1 LIMIT 1', Execution(("z",))),
        ("SELECT * FROM 1-10-1", Execution(failure="unsupported")),
        ('SELECT Player FROM 1-10-1 WHERE "nobody" = "nobody"', Execution(failure="unknown_column")),
        ("DROP TABLE 1-10-1", Execution(failure="refused")),
        ("ATTACH 'x.db' AS x", Execution(failure="refused")),
        ("SELECT Player FROM table_1_10_1", Execution(failure="wrong_table")),
        ("\ud800", Execution(failure="bad_syntax")),
    ],
)
def test_text(db: Path, sql: str, expected: Execution) -> None:
    before = hashlib.sha256(db.read_bytes()).digest()
    with open_named(db, [TABLE, TABLE]) as sandbox:
        assert execute_text(sql, TABLE, sandbox) == expected
    assert hashlib.sha256(db.read_bytes()).digest() == before
    assert [path.name for path in db.parent.iterdir()] == [db.name]


def test_scoring_by_text_counts_what_the_parser_cannot_read(db: Path, tmp_path: Path) -> None:
    gold = Example(TABLE.id, "?", TABLE.header, TABLE.types, LogicalForm(1, 0, ((2, 0, "Ajax"),)))
    texts = [
        "SELECT Player FROM 1-10-1 WHERE Club LIKE 'ajax'",
        "SELECT Player FROM 1-10-1 WHERE Club LIKE 'ajax' ORDER BY Player DESC",
        "SELECT Player FROM 1-10-1 WHERE Club LIKE 'lyon'",
        gold.completion,
        "I think it is Ann",
        "ATTACH 'evil.db' AS x",
    ]
    predictions = [Prediction(text, True, 9) for text in texts]
    predictions.append(Prediction(texts[0], False, 9))
    by_form = judge([gold] * 7, predictions, db)
    assert [verdict.outcome for verdict in by_form] == [
        "unsupported", "unsupported", "unsupported", "ok", "bad_syntax", "bad_syntax", "no_stop",
    ]  # fmt: skip
    by_text = judge([gold] * 7, predictions, db, execute_as="text")
    assert [verdict.outcome for verdict in by_text] == ["ok"] * 4 + ["bad_syntax", "bad_syntax", "no_stop"]
    assert [verdict.execution for verdict in by_text] == [True, False, False, True, False, False, False]
    assert [verdict.strict_execution for verdict in by_text] == [True, True, False, True, False, False, False]
    assert [verdict.logical_form for verdict in by_text] == [False] * 3 + [True] + [False] * 3
    assert by_text[3] == by_form[3]
    # The official format has no way to say what is no logical form.
    write_predictions(tmp_path / "adapter.jsonl", by_text)
    assert (tmp_path / "adapter.jsonl").read_text().splitlines()[0] == '{"error": "no logical form"}'


@pytest.mark.parametrize("name", ["1-10-2", "sqlite_x"])
def test_a_table_that_cannot_be_copied(db: Path, name: str) -> None:
    missing = Table(name, TABLE.header, TABLE.types, ())
    with pytest.raises(SqloraError, match=r"tables that cannot be copied.*score\.execute"), open_named(db, [missing]):
        pass
