"""CSV files become tables: encodings, delimiters, names, types."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from sqlora.import_csv.tables import read_csv_folder, read_number
from sqlora.wikisql.layout import Table


def only_table(tmp_path: Path, content: str | bytes, **more: Any) -> Table:
    (tmp_path / "t.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    read = read_csv_folder(tmp_path, **more)
    assert not read.problems, read.problems
    return read.tables["t"].table


def only_problem(tmp_path: Path, content: str | bytes, **more: Any) -> str:
    (tmp_path / "t.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    read = read_csv_folder(tmp_path, **more)
    assert not read.tables
    (problem,) = read.problems
    return f"{problem.where}: {problem.found}".removeprefix(f"{tmp_path}/")


@pytest.mark.parametrize(
    ("mark", "delimiter", "end"), list(product((b"", b"\xef\xbb\xbf"), (",", ";", "\t"), ("\n", "\r\n", "\r")))
)
def test_a_table_is_the_same_in_every_dress(tmp_path: Path, mark: bytes, delimiter: str, end: str) -> None:
    rows = [["Name", " Größe "], ["Åse", " 7 "], ["", ""], [f'"B{delimiter} ""o"""', "1.5"], []]
    content = mark + end.join(delimiter.join(row) for row in rows).encode()
    table = only_table(tmp_path, content)
    assert (table.header, table.types) == (("Name", "Größe"), ("text", "real"))
    assert table.rows == (("Åse", 7), (f'B{delimiter} "o"', 1.5))


@pytest.mark.parametrize(
    ("content", "header"),
    [
        ("Quote\n\"Yes, we can\"\n\"No, never\"\n", ("Quote",)),
        ("Name;Price\nAnn;1,5\nBo;2,5\n", ("Name", "Price")),
        ("Name;City, land\nAnn;Oslo\n", ("Name", "City, land")),
        ("id,tags\n1,a;b\n2,c;d\n", ("id", "tags")),
        ("City\tNote\nOslo, Norway\ta;b\nRome, Italy\tc;d\n", ("City", "Note")),
    ],
)  # fmt: skip
def test_the_delimiter_is_found(tmp_path: Path, content: str, header: tuple[str, ...]) -> None:
    assert only_table(tmp_path, content).header == header


def test_letters_of_two_characters_are_those_of_one(tmp_path: Path) -> None:
    assert only_table(tmp_path, "Cafe\u0301\nMe\u0301a\n").rows == (("M\xe9a",),)


def test_of_two_delimiters_that_fit_none_is_taken(tmp_path: Path) -> None:
    content = "Name;City, land\nAnn;Oslo, Norway\n"
    assert only_problem(tmp_path, content) == "t.csv: rows that are equally long with ',' and with ';' between cells"
    assert only_table(tmp_path, content, delimiter=";").header == ("Name", "City, land")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a,b\r\n1,2\r\nGröße,3\r\n".encode("latin-1"), "t.csv:3: the byte 0xF6, which is not UTF-8"),
        (b"\xef\xbb\xbfa\n\xff", "t.csv:2: the byte 0xFF, which is not UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "t.csv:1: the byte 0xFF, which is not UTF-8"),
        ("a,b\n1,2\n".encode("utf-16-le"), "t.csv:1: a zero byte"),
        ('a,b\n1,2\n"x,3\n4,5\n', "t.csv:3: no CSV (unexpected end of data)"),
        ('a,b\n"x"y,3\n', "t.csv:2: no CSV (',' expected after '\"')"),
        ("", "t.csv: an empty file"),
        ("a,b\n\n", "t.csv: a header without rows"),
        ('a,b\n"two\nlines",2\n1,2,3\n', "t.csv:4: 3 cells"),
        ("a,b,c\n1,2,3\n1,2\n", "t.csv:3: 2 cells"),
        ("a,,c\n1,2,3\n", "t.csv:1: column 2 without a name"),
        ("\na,b\nc, \n\nA ,d\n1\n", "t.csv:6: 1 cells"),
        ("Club  name,x,club NAME\n1,2,3\n", "t.csv:1: columns 1, 3 all named 'club name'"),
        ('"a\nb",c\n1,2\n', "t.csv:1: column 1, 'a\\nb', with a line break in its name"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, content: str | bytes, problem: str) -> None:
    assert only_problem(tmp_path, content) == problem


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", 7), ("-2.50", -2.5), ("+5", 5), ("0", 0), ("0.5", 0.5), (".5", 0.5), ("1,234", 1234),
        ("12,345.5", 12345.5),
        ("1e3", 1000.0), ("123456789012345678", 123456789012345678),
        ("007", None), ("00", None), ("01.5", None), ("0,123", None), ("12,34", None), ("1234,567", None),
        ("1 234", None), ("12%", None), ("", None), ("-", None), (".", None), ("5.", None), ("nan", None),
        ("inf", None), ("1e999", None),
        ("1234567890123456789", None), ("٣", None), ("0x1F", None), ("1_000", None), ("1995-96", None),
    ],
)  # fmt: skip
def test_what_a_number_is(text: str, number: float | None) -> None:
    assert read_number(text) == number
    assert type(read_number(text)) is type(number)


def test_types_are_those_of_the_filled_cells(tmp_path: Path) -> None:
    table = only_table(tmp_path, 'n,code,mixed,none,forced\n"1,234.5",007,1,,1\n,012,x,,2\n3,013,,,\n', text=["FORCED"])
    assert table.types == ("real", "text", "text", "text", "text")
    assert table.rows == ((1234.5, "007", "1", "", "1"), (None, "012", "x", "", "2"), (3, "013", "", "", ""))


def test_a_column_that_few_cells_made_text_is_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("year,code,name\n1999,007,a\n2001,12,2\nn/a,13,c\n2004,14,3\n")
    notes = read_csv_folder(tmp_path).tables["t"].notes
    assert notes == (f"{tmp_path}/t.csv:4: 'n/a' makes column year text; 3 of its 4 cells are numbers",)
