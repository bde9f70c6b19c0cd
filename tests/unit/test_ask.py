"""`python -m sqlora ask` on a tiny model, whose answers are SQL because they are constrained."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from contextlib import closing
from pathlib import Path

import pytest

from sqlora.ask.answer import Reply
from sqlora.ask.arguments import add_arguments
from sqlora.ask.command import as_json, run, show
from sqlora.ask.query import render_query
from sqlora.ask.source import open_csv, open_sqlite, quoted
from sqlora.errors import SqloraError
from sqlora.wikisql.form import LogicalForm

QUOTED = '"the ""orders"" list"'
CSV = 'Player,School/Club Team,Year\nAnn Lee,"North High, East",1998\nBo O\'Hara,South "S" College,2001\n'


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / "my players.csv"
    path.write_text(CSV)
    return path


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "shop.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f'CREATE TABLE {QUOTED} ("Item name" TEXT, "Price €" NUMERIC)')
        connection.execute(f"INSERT INTO {QUOTED} VALUES ('Tea', 3), ('Café', 4.5)")
        connection.execute("CREATE TABLE empty (a)")
    return path


def arguments(*options: object) -> Namespace:
    parser = ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(option) for option in options])


def test_a_question_about_a_csv_file(model_folder: Path, csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = run(arguments("who is in it?", "--csv", csv, "--model", model_folder, "--base", "--json"))
    reply = json.loads(capsys.readouterr().out)
    assert reply["question"] == "who is in it?"
    assert ' FROM "my players"' in reply["sql"]
    assert (status, reply["failure"]) == (0, None)
    assert reply["rows"], "a candidate that returns something was to be preferred"
    with open_csv(csv) as source:
        assert [list(row) for row in source.sandbox.run(reply["sql"]).rows] == reply["rows"]


def test_a_question_about_a_table_of_a_database(
    model_folder: Path, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("what?", "--sqlite", database, "--table", 'the "orders" list', "--model", model_folder, "--base")
    assert run(arguments(*options)) == 0
    assert f"FROM {QUOTED}" in capsys.readouterr().out


def test_questions_one_after_another(
    model_folder: Path, csv: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "why " * 40_000
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"who?\n{long}\nwhen?\n\nnot read\n"))
    assert run(arguments("--interactive", "--csv", csv, "--model", model_folder, "--base", "--json")) == 0
    output = capsys.readouterr()
    lines = [json.loads(line) for line in output.out.splitlines()]
    assert [line["question"] for line in lines] == ["who?", long.strip(), "when?"]
    assert [line["error"] is None for line in lines] == [True, False, True]
    assert "Shorten the question" in lines[1]["error"]
    assert "Shorten the question" in output.err


def test_sql_is_quoted_and_compares_texts_whatever_their_case(csv: Path) -> None:
    with open_csv(csv) as source:
        assert source.table.types == ("text", "text", "real")
        for form, expected in [
            (LogicalForm(2, 1, ((0, 0, "BO O'HARA"),)), [(2001,)]),
            (LogicalForm(0, 0, ((1, 0, 'south "s" college'), (2, 1, 1999.5))), [("Bo O'Hara",)]),
            (LogicalForm(0, 3, ((2, 2, 2000),)), [(1,)]),
        ]:
            assert list(source.sandbox.run(render_query(form, source.table, source.name)).rows) == expected


def test_what_cannot_be_asked_is_an_error(model_folder: Path, csv: Path, database: Path, tmp_path: Path) -> None:
    (tmp_path / "none.csv").write_text("")
    (tmp_path / "header.csv").write_text("a,b\n")
    for options, message in [
        (("x", "--csv", tmp_path / "none.csv"), "an empty file"),
        (("x", "--csv", tmp_path / "header.csv"), "a header without rows"),
        (("x", "--csv", tmp_path / "gone.csv"), "no such file"),
        (("x", "--sqlite", tmp_path / "gone.db"), "no such file"),
        (("x", "--sqlite", csv), "a file of another kind"),
        (("x", "--sqlite", database), "2 tables; expected one of empty, the"),
        (("x", "--sqlite", database, "--table", "nope"), "no table nope; expected one of empty, the"),
        (("x", "--sqlite", database, "--table", "empty"), "no row"),
        ((" ", "--csv", csv), "an empty one"),
        (("why " * 40_000, "--csv", csv), "Shorten the question"),
        (("x", "--interactive", "--csv", csv), "a question and --interactive"),
        (("--csv", csv), "no question"),
        (("x", "--csv", csv, "--table", "t"), "--table t and a CSV file"),
    ]:
        with pytest.raises(SqloraError, match=message):
            run(arguments(*options, "--model", model_folder, "--base"))
    with pytest.raises(SqloraError, match="no adapter"):
        run(arguments("x", "--csv", csv, "--model", model_folder, "--adapter", tmp_path / "adapter"))
    with pytest.raises(SqloraError, match="Run dvc repro convert"):
        run(arguments("x", "--csv", csv, "--model", tmp_path / "model", "--base"))


def test_ctrl_c_ends_the_questions_quietly(
    model_folder: Path, csv: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("sqlora.ask.command._next_question", interrupted)
    assert run(arguments("--interactive", "--csv", csv, "--model", model_folder, "--base")) == 130
    assert "error" not in capsys.readouterr().err


def test_an_error_is_json_too_where_that_was_asked_for(
    model_folder: Path, csv: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for question, options in [
        ("x", ("--csv", tmp_path / "gone.csv", "--base")),
        ("x", ("--csv", csv, "--adapter", tmp_path / "adapter")),
        ("why " * 40_000, ("--csv", csv, "--base")),
        ("bad \udcff byte", ("--csv", csv, "--base")),
    ]:
        with pytest.raises(SqloraError) as error:
            run(arguments(question, *options, "--model", model_folder, "--json"))
        assert json.loads(capsys.readouterr().out) == {"question": question, "error": str(error.value)}
    with pytest.raises(SystemExit):
        arguments("x", "--csv", csv, "--rows", "-1")
    with pytest.raises(SystemExit):
        arguments("x", "--csv", csv, "--rows", "abc")
    assert "'abc' is no whole number of 0 or more" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["---.csv", ".csv", "sqlite_stat.csv", "Ελλάδα 2.CSV", 'it\'s "x".csv', "7"])
def test_any_name_of_a_file_will_do(
    model_folder: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("\ufeffa;b, c\nx;1\n", encoding="utf-8")
    assert run(arguments("x?", "--csv", tmp_path / name, "--model", model_folder, "--base", "--json")) == 0
    reply = json.loads(capsys.readouterr().out)
    assert reply["sql"]
    with open_csv(tmp_path / name) as source:
        assert source.table.header == ("a", "b, c")
        assert source.sandbox.run(f"SELECT * FROM {quoted(source.name)}").rows == (("x", 1),)


def test_tables_are_found_by_their_own_names(tmp_path: Path) -> None:
    path = tmp_path / "names.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        for name in ("sqliteXy", "É", "Case"):
            connection.execute(f'CREATE TABLE "{name}" (a)')
            connection.execute(f'INSERT INTO "{name}" VALUES (9e999)')
        connection.execute('CREATE VIEW "the view" AS SELECT a AS "b ""c""", x\'00ff\' AS d FROM "Case"')
    for asked, found in [("sqliteXy", "sqliteXy"), ("é", "É"), ("CASE", "Case"), ("THE view", "the view")]:
        with open_sqlite(path, asked) as source:
            assert source.name == source.table.id == found
    with open_sqlite(path, "the view") as source:
        assert source.table.header == ('b "c"', "d")
        assert source.table.types == ("real", "text")
        result = source.sandbox.run('SELECT * FROM "the view"')
    reply = Reply("q", "w", "s", result.columns, result.rows)
    assert json.loads(as_json(reply, 5))["rows"] == [["inf", "00ff"]]
    assert show(reply, 5) == "s\n  inf | 00ff"
    assert show(Reply("q", "w", "s", ("a",), (("a\nb\x1b[2J", None),)), 5) == r"s" + "\n" + r"  a\x0ab\x1b[2J | "


def test_a_damaged_schema_is_named(tmp_path: Path) -> None:
    path = tmp_path / "damaged.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE sound (a)")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = 'CREATE TABLE sound (a'")
        connection.commit()
    with pytest.raises(SqloraError, match=r"damaged\.db"), open_sqlite(path, "sound"):
        pass


def test_of_a_table_that_is_too_large_to_be_handed_out_the_first_rows_count(tmp_path: Path) -> None:
    path = tmp_path / "large.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE t (a, b)")
        connection.executemany("INSERT INTO t VALUES (?, ?)", (("x" * 1000, number) for number in range(20_000)))
    with open_sqlite(path, None) as source:
        assert source.table.types == ("text", "real")
        assert len(source.table.rows) == 10_000
        query = render_query(LogicalForm(1, 1, ()), source.table, source.name)
        assert source.sandbox.run(query).rows == ((19_999,),), "the query is run on all of them"


def test_letters_other_than_english_ones_compare_whatever_their_case(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("Name,n\nÉmile,1\nÉMILE,2\nStraße,3\nJosé D'Ávila,4\n", encoding="utf-8")
    with open_csv(tmp_path / "t.csv") as source:
        for value, expected in [("émile", [1, 2]), ("STRAßE", [3]), ("josé d'ávila", [4]), ("ñ", []), ("x", [])]:
            query = render_query(LogicalForm(1, 0, ((0, 0, value),)), source.table, source.name)
            assert [row[0] for row in source.sandbox.run(query).rows] == expected, query
        query = render_query(LogicalForm(1, 0, ((1, 2, float("inf")),)), source.table, source.name)
        assert len(source.sandbox.run(query).rows) == 4


def test_the_database_stays_as_it_is(model_folder: Path, database: Path) -> None:
    before = database.read_bytes(), sorted(database.parent.iterdir())
    with open_sqlite(database, 'THE "ORDERS" LIST') as source:
        assert source.table.header == ("Item name", "Price €")
        assert source.table.types == ("text", "real")
    assert (database.read_bytes(), sorted(database.parent.iterdir())) == before


def test_the_command_line(model_folder: Path, csv: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "artifacts" / "model")
    command = [sys.executable, "-m", "sqlora", "ask", "who?", "--csv", str(csv)]
    done = subprocess.run([*command, "--base"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("SELECT ")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: artifacts/adapter: found no adapter")


def test_an_answer_that_did_not_end_is_called_so_even_if_what_is_there_is_a_query() -> None:
    shown = show(Reply("q", " SELECT a FROM t", None, failure="no_stop"), 20)
    assert shown == "no answer: the model's did not end within 200 tokens; it began ' SELECT a FROM t'"
