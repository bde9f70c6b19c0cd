"""The database of the tables, and logical forms executed on it as the official engine does."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sqlora.errors import SqloraError
from sqlora.sql.execute import Execution, build_database, execute, open_database, overwrites
from sqlora.wikisql.layout import LogicalForm, Table

PLAYERS = Table(
    "1-10-1",
    ("No.", "Player", "Points"),
    ("real", "text", "real"),
    (
        (7, "Ann O'Hara", 10),
        (8, "BOB", 2.5),
        (9, "Élan", None),
        (1234, "bob", 4),
        (-5, "Zoe", "n/a"),
    ),
)
OTHER = Table("2-10-1", ("a",), ("text",), (("x",), (5,)))


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "tables 100%?.db"
    build_database(path, [PLAYERS, OTHER])
    return path


def run(db: Path, sel: int, agg: int, *conds: tuple[int, int, Any]) -> Execution:
    with open_database(db) as runner:
        return execute(LogicalForm(sel, agg, conds), PLAYERS, runner)


def test_tables_are_stored_as_in_the_official_databases(db: Path) -> None:
    connection = sqlite3.connect(db)
    columns = connection.execute("SELECT name, lower(type) FROM pragma_table_info('table_1_10_1')").fetchall()
    assert columns == [("col0", "real"), ("col1", "text"), ("col2", "real")]
    assert connection.execute("SELECT * FROM table_1_10_1 LIMIT 3").fetchall() == [
        (7.0, "ann o'hara", 10.0),
        (8.0, "bob", 2.5),
        (9.0, "élan", None),
    ]
    assert connection.execute("SELECT typeof(col0), col0 FROM table_2_10_1").fetchall() == [
        ("text", "x"),
        ("text", "5"),
    ]
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ((0, 0), (7.0, 8.0, 9.0, 1234.0, -5.0)),
        ((1, 0, (0, 0, 7)), ("ann o'hara",)),
        ((0, 0, (1, 0, "Ann O'HARA")), (7.0,)),
        ((0, 0, (1, 0, "ÉLAN")), (9.0,)),
        ((0, 0, (1, 0, "bob")), (8.0, 1234.0)),
        ((0, 0, (1, 0, "bob"), (2, 2, 3)), (8.0,)),
        ((0, 0, (1, 0, "' OR 1=1 --")), ()),
        ((0, 3), (5,)),
        ((2, 3), (4,)),
        ((0, 1), (1234.0,)),
        ((0, 2), (-5.0,)),
        ((0, 4, (0, 2, 10)), (19.0,)),
        ((0, 5, (1, 0, "bob")), (621.0,)),
        ((0, 1, (1, 0, "nobody")), (None,)),
        ((1, 0, (0, 0, "7")), ("ann o'hara",)),
        ((1, 0, (0, 0, "1,234")), ("bob",)),
        ((1, 0, (0, 0, "-5")), ("zoe",)),
        ((1, 0, (0, 0, "about 7 of 8")), ("ann o'hara",)),
        ((1, 0, (0, 0, "7-8")), ("ann o'hara",)),
        ((1, 0, (0, 2, 10**400)), ("ann o'hara", "bob", "élan", "bob", "zoe")),
        ((1, 0, (0, 1, -(10**400))), ("ann o'hara", "bob", "élan", "bob", "zoe")),
        ((1, 0, (0, 0, "9" * 5000)), ()),
        ((1, 0, (1, 0, "\0")), ()),
    ],
)
def test_executes_as_the_official_engine(db: Path, query: Any, rows: tuple[Any, ...]) -> None:
    assert run(db, *query) == Execution(rows)


def test_of_two_conditions_on_one_column_the_last_value_is_bound_to_both(db: Path) -> None:
    assert run(db, 0, 0, (0, 1, 7), (0, 2, 9)).rows == ()
    assert run(db, 0, 0, (0, 0, 9), (0, 0, 7)).rows == (7.0,)


def test_a_wrong_query_is_a_named_failure(db: Path) -> None:
    assert run(db, 0, 0, (0, 0, "seven")) == Execution(failure="bad_value")
    assert run(db, 3, 0) == Execution(failure="unknown_column")  # not the text 'col3', as "col3" would be
    assert run(db, 0, 0, (1, 0, "\ud800")) == Execution(failure="sql_error")
    with open_database(db) as runner:
        missing = Table("1-10-9", PLAYERS.header, PLAYERS.types, ())
        assert execute(LogicalForm(0, 0, ()), missing, runner) == Execution(failure="wrong_table")


def test_what_no_query_may_do_is_a_failure_and_the_next_one_runs(db: Path) -> None:
    before = hashlib.sha256(db.read_bytes()).digest()
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    with open_database(db) as runner:
        for sql in ("DELETE FROM table_1_10_1", "DROP TABLE table_1_10_1", "CREATE TABLE x (a)", endless):
            assert runner.run(sql, {}).failure == "refused"
        assert runner.run("SELECT 1; SELECT 2", {}).failure == "bad_syntax"
        assert runner.run("SELECT 1", {}) == Execution((1,))
    assert hashlib.sha256(db.read_bytes()).digest() == before


def test_strict_execution_keeps_both_values_of_one_column(db: Path) -> None:
    between = LogicalForm(0, 0, ((0, 1, 7), (0, 2, 9)))
    with open_database(db) as runner:
        assert execute(between, PLAYERS, runner).rows == ()
        assert execute(between, PLAYERS, runner, strict=True).rows == (8.0,)
    assert overwrites(between)
    assert not overwrites(LogicalForm(0, 0, ((0, 1, 7), (1, 2, 9))))


def test_equal_tables_give_equal_bytes(tmp_path: Path, db: Path) -> None:
    again = tmp_path / "again.db"
    build_database(again, [PLAYERS, OTHER])
    assert again.read_bytes() == db.read_bytes()
    assert db.read_bytes()[96:100] == bytes(4)  # where SQLite writes its version


@pytest.mark.parametrize(
    "tables",
    [
        [PLAYERS, Table("1_10-1", ("a",), ("text",), ())],
        [Table("1", ("a",) * 2001, ("text",) * 2001, ())],
        [Table("1", ("a",), ("real",), ((2**70,),))],
        [Table("1", ("a",), ("text",), (("\ud800",),))],
        [Table("a\0b", ("a",), ("text",), ())],
    ],
)
def test_a_table_that_sqlite_refuses_is_named(tmp_path: Path, tables: list[Table]) -> None:
    with pytest.raises(SqloraError) as caught:
        build_database(tmp_path / "refused.db", tables)
    assert caught.value.where == f"table {tables[-1].id}"


def test_odd_table_ids(tmp_path: Path) -> None:
    table = Table('x"; DROP TABLE y; --', ("a",), ("text",), (("1",),))
    build_database(tmp_path / "odd.db", [table])
    with open_database(tmp_path / "odd.db") as runner:
        assert execute(LogicalForm(0, 0, ()), table, runner).rows == ("1",)


def test_a_database_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(SqloraError, match="no such file"), open_database(tmp_path / "none.db"):
        pass
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "text.db").write_text("not a database " * 100)
    with pytest.raises(SqloraError, match="a file of another kind"), open_database(tmp_path / "text.db"):
        pass


def test_a_python_that_was_found_by_a_relative_path(db: Path, tmp_path: Path) -> None:
    # The pipeline's commands prefer .venv/bin by PATH.
    (tmp_path / "environment").symlink_to(Path(sys.prefix))
    code = "import sys, pathlib; from sqlora.sql.execute import open_database\n"
    code += "with open_database(pathlib.Path(sys.argv[1])) as runner: print(sys.executable, runner.run('SELECT 1', {}))"
    done = subprocess.run(
        ["python", "-c", code, str(db)],
        cwd=tmp_path,
        env=os.environ | {"PATH": "environment/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert "environment/bin/python Execution(rows=(1,), failure=None)" in done.stdout
