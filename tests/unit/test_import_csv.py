"""CSV tables and questions become WikiSQL's layout, or every mistake in them is named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from contract import ROOT

from sqlora.errors import SqloraError
from sqlora.import_csv.importer import InputProblemsError, Summary, import_csv
from sqlora.import_csv.tables import read_csv_folder
from sqlora.wikisql.layout import PARTS, LogicalForm, Question, Table, read_questions, read_tables

SHARES = (80.0, 10.0, 10.0)
GUIDE = (ROOT / "docs" / "guides" / "own-data.md").read_text(encoding="utf-8")
CSV = "Player,No.,Team of 1999\nAnn,1,Hull\nBo,2.5,\nCy,,York\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three tables of the same content."""
    path = tmp_path / "tables"
    path.mkdir()
    for name in ("one", "two", "three"):
        (path / f"{name}.csv").write_text(CSV)
    return path


def ask(table: str = "one", sql: Any = "SELECT Player FROM one", question: str = "Who?", **more: Any) -> dict[str, Any]:
    return {"table": table, "question": question, "sql": sql, **more}


def all_three() -> list[Any]:
    return [ask(name, f"SELECT Player FROM {name}") for name in ("one", "two", "three")]


def run(folder: Path, lines: list[Any], **more: Any) -> Summary:
    """Import; lines are objects, or texts that stand in the file as they are."""
    path = folder.parent / "q.jsonl"
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return import_csv(folder, path, folder.parent / "out", **{"seed": 1, "shares": SHARES, **more})


def problems(folder: Path, lines: list[Any], **more: Any) -> list[str]:
    with pytest.raises(InputProblemsError) as caught:
        run(folder, lines, **more)
    assert not (folder.parent / "out").exists()
    return [line.replace(f"{folder.parent}/", "") for line in caught.value.lines]


def written(out: Path) -> dict[str, tuple[dict[str, Table], list[Question]]]:
    read = {}
    for part in PARTS:
        tables = read_tables(out / f"{part}.tables.jsonl")
        read[part] = (tables, read_questions(out / f"{part}.jsonl", tables))
    return read


# Names of tables


def test_ids_are_one_word_and_any_spelling_of_the_name_finds_the_table(folder: Path) -> None:
    (folder / "Åre & co_2023.CSV").write_text(CSV)
    (folder / "._one.csv").write_bytes(b"\xff")
    names = ("Åre & co_2023", "Åre-co-2023", "A\u030are & CO_2023.csv", "åre & co 2023.csv")
    lines = [*all_three(), *(ask(name, f"SELECT Player FROM {name.removesuffix('.csv')}") for name in names)]
    summary = run(folder, lines)
    assert {one.table.id: one.questions for one in summary.tables} == {"one": 1, "two": 1, "three": 1, "Åre-co-2023": 4}


def test_names_that_give_the_same_id_and_those_that_give_none(folder: Path) -> None:
    for name in ("a-b", "A_b", "--"):
        (folder / f"{name}.csv").write_text(CSV)
    found = problems(folder, [*all_three(), ask("a b")])
    assert [line.split(";")[0] for line in found] == ["tables: found --.csv", "tables: found a-b.csv and A_b.csv"]


@pytest.mark.parametrize(
    ("make", "found"), [(True, "no file NAME.csv: notes.txt"), (False, "No such file or directory")]
)
def test_a_folder_without_tables(tmp_path: Path, make: bool, found: str) -> None:
    if make:
        (tmp_path / "t").mkdir()
        (tmp_path / "t" / "notes.txt").write_text("")
    with pytest.raises(SqloraError, match=re.escape(found)):
        read_csv_folder(tmp_path / "t")


def test_text_names_an_existing_column(folder: Path) -> None:
    assert problems(folder, all_three(), text=["Goals"]) == [
        "--text Goals: found no such column; expected a column of a table"
    ]
    assert run(folder, all_three(), text=["no."]).tables[0].table.types == ("text", "text", "text")


# Questions


@pytest.mark.parametrize(
    ("sql", "form"),
    [
        ("SELECT COUNT Player FROM one WHERE No. > 1 AND Player = 'Ann';", (0, 3, ((1, 1, 1), (0, 0, "Ann")))),
        ('select count("Player") from ONE where "No." > \'1\' and Player = "Ann"', (0, 3, ((1, 1, 1), (0, 0, "Ann")))),
        ({"sel": 0, "agg": 3, "conds": [[1, 1, 1], [0, 0, "Ann"]]}, (0, 3, ((1, 1, 1), (0, 0, "Ann")))),
        ({"sel": "player", "agg": "count", "conds": [["NO.", ">", "1"]]}, (0, 3, ((1, 1, 1),))),
        ({"sel": "Team  of 1999", "agg": "", "conds": [["Player", "=", 7]]}, (2, 0, ((0, 0, "7"),))),
        ({"sel": 1, "agg": "AVG", "conds": []}, (1, 5, ())),
    ],
)  # fmt: skip
def test_forms_of_a_query(folder: Path, sql: Any, form: tuple[int, int, Any]) -> None:
    run(folder, [*all_three()[1:], ask(sql=sql)])
    forms = [
        q.sql for _, questions in written(folder.parent / "out").values() for q in questions if q.table_id == "one"
    ]
    assert forms == [LogicalForm(*form)]
    assert [type(value) for *_, value in forms[0].conds] == [type(value) for *_, value in form[2]]


@pytest.mark.parametrize(
    ("line", "found", "expected"),
    [
        ("{", "a line that is no JSON", "one JSON object"),
        ('{"table": "one", "question": "Who?", "sql": {"sel": 0, "agg": 0, "conds": [[1, 0, NaN]]}}', "no JSON", ""),
        ('{"table": "one", "question": "\\ud800", "sql": "SELECT Player FROM one"}', "no JSON", "UTF-8"),
        ("[1]", "a JSON list", "one JSON object"),
        ({"question": "Who?", "sql": "SELECT Player FROM one"}, "no key table", "a text under table"),
        (ask(table_id="one"), "both table and table_id", "one of them"),
        (ask("four"), "table 'four'", "one of one, three, two"),
        (ask(question=" "), "question ''", "a question in one line"),
        (ask(question="Who\u2028?"), "question 'Who\\u2028?'", "one line"),
        (ask(part="valid"), "part 'valid'", "one of train, dev, test"),
        (ask(part=["dev"]), "part ['dev']", "one of train, dev, test"),
        (ask(sql=None), "sql None", "SELECT [MAX|MIN|COUNT|SUM|AVG] column FROM table"),
        (ask(sql="SELECT Player FROM two"), "wrong_table at 'two'", "FROM one"),
        (ask(sql="SELECT Goals FROM one"), "unknown_column at 'Goals", "columns Player (text), No. (real)"),
        (ask(sql="SELECT Player FROM one ORDER BY No."), "at ' ORDER BY No.'", "SELECT [MAX|MIN|COUNT|SUM|AVG] column"),
        (ask(sql="SELECT Player FROM one WHERE No. = 1995-96"), "'1995-96' for column No.", "a number"),
        (ask(sql={"sel": 1, "agg": 0, "conds": [["No.", 0, "many"]]}), "'many' for column No.", "a number"),
        (ask(sql={"sel": 3, "agg": 0, "conds": []}), "sel 3", "from 0 to 2"),
        (ask(sql={"sel": "Goals", "agg": 0, "conds": []}), "column 'Goals'", "one of Player, No., Team of 1999"),
        (ask(sql={"sel": 0, "agg": "MEAN", "conds": []}), "aggregate 'MEAN'", "MAX, MIN, COUNT"),
        (ask(sql={"sel": 0, "agg": 0, "conds": [[0, ">=", "x"]]}), "operator '>='", "=, >, <"),
        (ask(sql={"sel": 0, "agg": 0, "conds": [[0, 0]]}), "condition [0, 0]", "[column, operator, value]"),
        (ask(sql={"sel": 0, "agg": 0}), "sql", "a list conds"),
        (ask(sql="SELECT SUM Player FROM one"), "SUM of column Player, which is text", "a column of numbers"),
        (
            ask(sql={"sel": 0, "agg": 0, "conds": [[0, 0, "x' AND Player = 'y"]]}),
            "a query that the text format cannot hold",
            "cannot be taken for others",
        ),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(folder: Path, line: Any, found: str, expected: str) -> None:
    (problem,) = problems(folder, [all_three()[0], "", line])
    where, _, rest = problem.partition(": found ")
    assert where == "q.jsonl:3"
    assert found in rest.rpartition("; expected ")[0] or found in rest.partition("; expected ")[0]
    assert expected in rest.partition("; expected ")[2]


def test_a_byte_order_mark_blank_lines_and_windows_line_ends_do_no_harm(folder: Path) -> None:
    lines = [json.dumps(line) + "\r" for line in all_three()]
    assert len(run(folder, ["\ufeff" + lines[0], "\r", *lines[1:]]).tables) == 3


def test_everything_that_is_wrong_is_reported_at_once_in_order(folder: Path) -> None:
    (folder / "bad.csv").write_text("a,b\n1\n1,2\n1,2,3\n")
    lines = [ask(part="dev"), "{", ask("bad", "SELECT a FROM bad"), ask(part="test"), *["["] * 30]
    found = problems(folder, lines)
    assert [line.partition(": ")[0] for line in found[:5]] == [
        "tables/bad.csv:2", "tables/bad.csv:4", "q.jsonl:2", "q.jsonl:4", "q.jsonl:5"
    ]  # fmt: skip
    assert "part test for table one; expected dev, as in" in found[3]
    assert len(found) == 21
    assert found[20] == "and 14 more"


def test_what_may_be_a_mistake_is_a_warning(folder: Path) -> None:
    (folder / "unused.csv").write_text(CSV)
    lines = [
        *all_three(),
        ask(sql="SELECT Player FROM one WHERE No. > 1 AND No. < 2", Level=3),
        ask(sql="SELECT COUNT Player FROM one WHERE No. > 99", question="How many?"),
        ask(sql="SELECT MAX No. FROM one WHERE Player > '5' AND No. > 1 AND No. < 3", question="Highest?"),
    ]  # fmt: skip
    assert [warning.replace(f"{folder.parent}/", "") for warning in run(folder, lines).warnings] == [
        "no question asks about unused: left out",
        "keys without a meaning here, ignored: Level",
        "the same question with two different queries: q.jsonl:4 and q.jsonl:1",
        "> or < between a number and a text column, in which 9 comes after 10: q.jsonl:6",
        "2 of 6 queries find nothing in their table: q.jsonl:4, q.jsonl:5",
    ]


# Parts


def test_pins_hold_for_the_whole_table(folder: Path) -> None:
    lines = [*all_three(), ask(part="test"), ask("two", "SELECT Player FROM two", part="dev")]
    summary = run(folder, lines)
    assert {one.table.id: one.part for one in summary.tables} == {"one": "test", "two": "dev", "three": "train"}


@pytest.mark.parametrize(
    "shares", [(80.0, 20.0, 0.0), (1.0, 1.0, -1.0), (1.0, 1.0, float("nan")), (1.0, 1.0, float("inf"))]
)
def test_shares_are_positive(folder: Path, shares: tuple[float, float, float]) -> None:
    with pytest.raises(SqloraError, match="three numbers above 0"):
        run(folder, all_three(), shares=shares)


# What is written


def test_the_layout_holds_every_question_once_and_no_table_twice(folder: Path) -> None:
    summary = run(folder, all_three())
    read = written(folder.parent / "out")
    ids = [table_id for tables, _ in read.values() for table_id in tables]
    assert sorted(ids) == ["one", "three", "two"]
    assert (
        [len(questions) for _, questions in read.values()] == [summary.questions(part) for part in PARTS] == [1, 1, 1]
    )
    table = next(iter(read["train"][0].values()))
    assert table.header == ("Player", "No.", "Team of 1999")
    assert table.rows == (("Ann", 1, "Hull"), ("Bo", 2.5, ""), ("Cy", None, "York"))


def test_equal_input_gives_equal_bytes_and_an_import_replaces_an_import(folder: Path) -> None:
    assert not run(folder, all_three()).replaced
    out = folder.parent / "out"
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert run(folder, all_three()).replaced
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    assert sorted(first) == sorted(f"{part}{ending}" for part in PARTS for ending in (".jsonl", ".tables.jsonl"))


@pytest.mark.parametrize("kind", ["folder", "file", "link", "below a file"])
def test_what_is_no_import_is_never_replaced(folder: Path, kind: str) -> None:
    run(folder, all_three())
    earlier = (folder.parent / "out").rename(folder.parent / "earlier")
    out = folder.parent / "new"
    if kind == "folder":
        earlier.rename(out)
        (out / "precious.txt").write_text("")
    elif kind == "link":
        out.symlink_to(earlier)
    else:
        out.write_text("precious")
    with pytest.raises(SqloraError, match="with --out"):
        import_csv(
            folder, folder.parent / "q.jsonl", out / "x" if kind == "below a file" else out, seed=1, shares=SHARES
        )
    if kind == "folder":
        assert (out / "precious.txt").exists()
    elif kind == "link":
        assert out.is_symlink()
    else:
        assert out.read_text() == "precious"


# The command, and its guide


def command(work: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "sqlora", "import-csv", *arguments],
        cwd=work, text=True, encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_the_guide_shows_what_the_command_prints(tmp_path: Path) -> None:
    files = re.findall(r"^`([\w./-]+)`\n```\w+\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    assert len(files) == 5
    for name, content in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    shown = re.findall(
        r"^```sh\npython -m sqlora import-csv (.*?)\n```\n\nprints\n\n```\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL
    )
    assert len(shown) == 2
    for arguments, output in shown:
        status, printed = command(tmp_path, *arguments.split())
        assert printed == output
        assert status == output.startswith("error")
    assert sorted(written(tmp_path / "my-data")["train"][0]) == ["books"]
    assert "-f fetch_data" in command(tmp_path, *shown[0][0].split())[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--shares", "80,20"), "--shares: found '80,20'; expected three numbers above 0"),
        (("--shares", "80,20,0"), "--shares: found 80,20,0; expected three numbers above 0"),
        (("--out", "."), "something else already"),
    ],
)
def test_a_wrong_option_is_one_paragraph(folder: Path, arguments: tuple[str, ...], says: str) -> None:
    status, printed = command(folder.parent, "tables", "none.jsonl", "--out", "out", *arguments)
    assert status == 1
    assert says in " ".join(printed.split())
    assert "Traceback" not in printed


def test_out_is_written_so_that_yaml_and_data_source_read_it(folder: Path) -> None:
    (folder.parent / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in all_three()))
    for out, shown in (
        ("demo", "source: ./demo\n"),
        ("my data: new", 'source: "my data: new"\n'),
        ("a/b-1", "source: a/b-1\n"),
    ):
        status, printed = command(folder.parent, "tables", "q.jsonl", "--out", out)
        assert status == 0
        assert shown in printed
