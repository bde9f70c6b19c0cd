"""The schema-aware parser: what it reads, and the name it gives to what it cannot read."""

from __future__ import annotations

import random
import time

import pytest

from sqlora.sql.parse import parse_number, parse_sql
from sqlora.text import render_sql
from sqlora.wikisql.form import LogicalForm
from sqlora.wikisql.layout import Table

NAMES = (
    "From", "Where", "And", "Select", "Country AND City", "Score", "Score in the final", "Score, total", "FROM Where",
    "Max Points", "Points", "Count", "Player's name", "12\" ep", "'Top' (a)", "No.", "#", "% of vote", "W/L [a]",
    "a = b", "a", "Date FROM", "Date", "Sum", "x < y", "Größe", "$1", "\\d+", "COUNT", "Min", "wrong.table", "Year AND",
)  # fmt: skip
TEXTS = (
    "", "O'Hara", "it's Tom's AND Jerry", "x' AND y", "AND", " AND ", "Score = 5", "where", "FROM 1-2-3", "1,234", "7",
    "'quoted'", "'", "''", "a > b", "rock 'n' roll", "trailing ", " leading", "SELECT a FROM b", "tab\tnew\nline",
    "end'", "Fenway Park' (Boston) AND Shea", "= '", "ÄÖ", "100%", "\\",
)  # fmt: skip
NUMBERS = (0, 7, -5, 2.5, 1990, 0.1, 10**12, -0.25, 1e-7, 1e300, 12.0)

HEADER = ("Player", "No.", "Score", "Score in the final", "From")
TYPES = ("text", "real", "real", "text", "text")


def parse(text: str) -> tuple[str, LogicalForm | None]:
    parsed = parse_sql(text, "1-2-3", HEADER, TYPES)
    return parsed.outcome, parsed.form


def random_case(rng: random.Random) -> tuple[Table, LogicalForm]:
    header = tuple(rng.sample(NAMES, rng.randint(1, 9)))
    types = tuple(rng.choice(("text", "real")) for _ in header)
    conds = tuple(
        (column, rng.randrange(3), rng.choice(TEXTS) if types[column] == "text" else rng.choice(NUMBERS))
        for column in (rng.randrange(len(header)) for _ in range(rng.randint(0, 4)))
    )
    agg = rng.randrange(6)
    return Table("2-11-5", header, types, ()), LogicalForm(rng.randrange(len(header)), agg, conds)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_rendered_is_read_back(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(200):
        table, form = random_case(rng)
        sql = render_sql(form, table)
        parsed = parse_sql(" " + sql, table.id, table.header, table.types)
        assert (parsed.outcome, parsed.form) == ("ok", form), f"{sql}\n{table.header}"


@pytest.mark.parametrize("seed", range(5))
def test_letter_case_and_blanks_do_not_matter_outside_values(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(200):
        table, form = random_case(rng)
        # Numbered, because case alone tells apart an aggregate from a column called so; upper case of ß is two letters.
        header = tuple(f"c{index} {name}".replace("ß", "s") for index, name in enumerate(table.header))
        conds = tuple(
            (column, op, "7") if isinstance(value, str) else (column, op, 7) for column, op, value in form.conds
        )
        form = LogicalForm(form.sel, form.agg, conds)
        sql = render_sql(form, Table(table.id, header, table.types, ()))
        changed = rng.choice((str.lower, str.upper, str.swapcase))(sql).replace(" ", rng.choice((" ", "  ", " \n\t")))
        parsed = parse_sql(changed, table.id, header, table.types)
        assert (parsed.outcome, parsed.form) == ("ok", form), f"{changed}\n{header}"


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("SELECT Player FROM 1-2-3", LogicalForm(0, 0, ())),
        ("SELECT COUNT Player FROM 1-2-3", LogicalForm(0, 3, ())),
        ("SELECT Score in the final FROM 1-2-3", LogicalForm(3, 0, ())),
        ("SELECT From FROM 1-2-3 WHERE From = 'here'", LogicalForm(4, 0, ((4, 0, "here"),))),
        ("SELECT Player FROM 1-2-3 WHERE Score = 7 AND Score in the final = '6-1'",
         LogicalForm(0, 0, ((2, 0, 7), (3, 0, "6-1")))),
        ("SELECT Player FROM 1-2-3 WHERE Player='x'AND'", LogicalForm(0, 0, ((0, 0, "x'AND"),))),
        ("SELECT Player FROM 1-2-3 WHERE No.>1,234", LogicalForm(0, 0, ((1, 1, 1234),))),
        ("SELECT Player FROM 1-2-3 WHERE No. < -1,234,567.5", LogicalForm(0, 0, ((1, 2, -1234567.5),))),
        ("SELECT Player FROM 1-2-3 WHERE No. = '7'", LogicalForm(0, 0, ((1, 0, 7),))),
        ("SELECT Player FROM 1-2-3 WHERE No. = 1995-96", LogicalForm(0, 0, ((1, 0, "1995-96"),))),
        ("SELECT Player FROM 1-2-3 WHERE No. = 10th AND Score = .5", LogicalForm(0, 0, ((1, 0, "10th"), (2, 0, 0.5)))),
    ],
)  # fmt: skip
def test_reads(text: str, form: LogicalForm) -> None:
    assert parse(text) == ("ok", form)


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("The answer is 7", "bad_syntax"),
        ("SELECT", "bad_syntax"),
        ("SELECT Player", "bad_syntax"),
        ("SELECT Player FROM", "bad_syntax"),
        ("SELECT Players FROM 1-2-3", "unknown_column"),
        ("SELECT COUNT FROM 1-2-3", "unknown_column"),
        ("SELECT Player FROM 1-2-4", "wrong_table"),
        ("SELECT Player FROM 1-2-33", "wrong_table"),
        ("SELECT Player FROM 1-2-3 WHERE", "bad_syntax"),
        ("SELECT Player FROM 1-2-3 WHERE Player", "bad_syntax"),
        ("SELECT Player FROM 1-2-3 WHERE Player = 'x", "bad_syntax"),
        ("SELECT Player FROM 1-2-3 WHERE Player = x", "bad_syntax"),
        ("SELECT Player FROM 1-2-3 WHERE Player = 'x' AND", "bad_syntax"),
        ("SELECT Player FROM 1-2-3 WHERE No. = seven", "bad_syntax"),
        ("SELECT Player FROM 1-2-3 WHERE No. = 7 and so on", "bad_syntax"),
        ("SELECT Player FROM 1-2-3 WHERE No. = 7 8", "bad_syntax"),
        ("SELECT Player FROM 1-2-3 WHERE Team = 'x'", "unknown_column"),
        ("SELECT Player FROM 1-2-3 WHERE No. = 7 AND Team = 'x'", "unknown_column"),
        ("SELECT Player FROM 1-2-3 WHERE Player = 'x' AND Team = 'y'", "unknown_column"),
        ("SELECT Player FROM 1-2-3 WHERE Player = 'x' AND Player = y'", "bad_syntax"),
        ("SELECT Player FROM 1-2-3; DROP TABLE x", "bad_syntax"),
        ("SELECT COUNT(Player FROM 1-2-3", "unknown_column"),
        ("SELECT COUNT(Players) FROM 1-2-3", "unknown_column"),
        ("SELECT COUNT Player) FROM 1-2-3", "unknown_column"),
        ('SELECT "Player FROM 1-2-3', "unknown_column"),
        ("SELECT 'Player' FROM 1-2-3", "unknown_column"),
        ('SELECT Player FROM "1-2-3', "wrong_table"),
        ("SELECT Player FROM [1-2-33]", "wrong_table"),
        ("SELECT Player FROM 1-2-3 WHERE Player = \"x'", "bad_syntax"),
        # SQL that is right and yet says what no logical form says.
        ("SELECT * FROM 1-2-3", "unsupported"),
        ("SELECT COUNT(*) FROM 1-2-3", "unsupported"),
        ("SELECT DISTINCT Player FROM 1-2-3", "unsupported"),
        ("SELECT COUNT(DISTINCT Player) FROM 1-2-3", "unsupported"),
        ("SELECT Player, Score FROM 1-2-3", "unsupported"),
        ("SELECT Player FROM 1-2-3 LIMIT 1", "unsupported"),
        ("SELECT Player FROM 1-2-3 ORDER BY No.", "unsupported"),
        ("SELECT Player FROM 1-2-3 WHERE No. = 7 ORDER BY No.", "unsupported"),
        ("SELECT Player FROM 1-2-3 WHERE Player = 'x' OR Player = 'y", "unsupported"),
        ("SELECT Player FROM 1-2-3 WHERE No. = 7 OR No. = 8", "unsupported"),
        ("SELECT Player FROM 1-2-3 WHERE Player = 'Ann' OR Player = 'Bo'", "unsupported"),
        ("SELECT Player FROM 1-2-3 WHERE Player = 'Ann' or Team LIKE 'Bo'", "unsupported"),
        ("SELECT Player FROM 1-2-3 WHERE Player = 'Ann' AND From LIKE 'y'", "unsupported"),
        ("SELECT Player FROM 1-2-3 WHERE Player = 'Ann' AND No. >= '7'", "unsupported"),
        ("SELECT Player FROM 1-2-3 WHERE Player = 'x' ORDER BY From = 'q'", "unsupported"),
        ("SELECT Player FROM 1-2-3 WHERE Player = 'x' UNION SELECT From FROM t WHERE a = 'q'", "unsupported"),
        ("SELECT Player FROM 1-2-3 WHERE No. >= 7", "unsupported"),
        ("SELECT Player FROM 1-2-3 WHERE No. <> 7", "unsupported"),
        ("SELECT Player FROM 1-2-3 WHERE No. != 7", "unsupported"),
        ("SELECT Player FROM 1-2-3 WHERE Player LIKE 'x'", "unsupported"),
        ("SELECT Player FROM 1-2-3 WHERE Player IS NULL", "unsupported"),
        ("SELECT Player FROM 1-2-3 WHERE No. IN (1)", "unsupported"),
        # Of two readings that fail, the one that came farther tells.
        ("SELECT Player FROM 1-2-3 WHERE Player = 'a' AND b' AND Team = 'x'", "unknown_column"),
    ],
)
def test_names_what_it_cannot_read(text: str, outcome: str) -> None:
    assert parse(text) == (outcome, None)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("SELECT COUNT(Player) FROM 1-2-3", LogicalForm(0, 3, ())),
        ("select count ( player ) from 1-2-3", LogicalForm(0, 3, ())),
        ('SELECT MAX("No.") FROM "1-2-3"', LogicalForm(1, 1, ())),
        ("SELECT `Score in the final` FROM `1-2-3`", LogicalForm(3, 0, ())),
        ("SELECT [Score] FROM [1-2-3] WHERE [From] = 'x'", LogicalForm(2, 0, ((4, 0, "x"),))),
        ('SELECT"Player"FROM 1-2-3', None),
        ('SELECT "Player"FROM 1-2-3', LogicalForm(0, 0, ())),
        ('SELECT Player FROM 1-2-3 WHERE "Player"=\'x\' AND "No."=7', LogicalForm(0, 0, ((0, 0, "x"), (1, 0, 7)))),
        ('SELECT Player FROM 1-2-3 WHERE Player = "Dwight "Doc" Gooden" AND No. = 1',
         LogicalForm(0, 0, ((0, 0, 'Dwight "Doc" Gooden'), (1, 0, 1)))),
        ("SELECT Player FROM 1-2-3 WHERE Player = \"O'Hara\"", LogicalForm(0, 0, ((0, 0, "O'Hara"),))),
        ("SELECT Player FROM 1-2-3 WHERE Player = 1998", LogicalForm(0, 0, ((0, 0, "1998"),))),
        ("SELECT Player FROM 1-2-3 WHERE Player = 1,998 AND No. = 1", LogicalForm(0, 0, ((0, 0, "1,998"), (1, 0, 1)))),
        ("SELECT Player FROM 1-2-3 WHERE No. == 7", LogicalForm(0, 0, ((1, 0, 7),))),
        ('SELECT Player FROM 1-2-3 WHERE No. = "7"', LogicalForm(0, 0, ((1, 0, 7),))),
        ("SELECT Player FROM 1-2-3 WHERE No. = '10 km' AND Score = 'abc'",
         LogicalForm(0, 0, ((1, 0, "10 km"), (2, 0, "abc")))),
        ("SELECT Player FROM 1-2-3 WHERE Player = 'either' OR or' AND No. = 1",
         LogicalForm(0, 0, ((0, 0, "either' OR or"), (1, 0, 1)))),
        ("SELECT Player FROM 1-2-3 WHERE Player = 'it''s'", LogicalForm(0, 0, ((0, 0, "it''s"),))),
        ("SELECT Player FROM 1-2-3 ;", LogicalForm(0, 0, ())),
        ("SELECT Player FROM 1-2-3;", LogicalForm(0, 0, ())),
        ("SELECT Player FROM 1-2-3 WHERE Player = 'x';", LogicalForm(0, 0, ((0, 0, "x"),))),
        ("SELECT Player FROM 1-2-3 WHERE Player = 'x;'", LogicalForm(0, 0, ((0, 0, "x;"),))),
        ("SELECT Player FROM 1-2-3 WHERE No. = 7;", LogicalForm(0, 0, ((1, 0, 7),))),
    ],
)  # fmt: skip
def test_reads_what_models_write_besides(text: str, form: LogicalForm | None) -> None:
    assert parse(text)[1] == form


def test_a_name_that_looks_quoted_is_taken_as_it_stands() -> None:
    header = ("MAX(kg)", "kg", '"kg"', "[a]", "a", "Count (x)", "x")
    types = ("real",) * 7

    def read(name: str) -> LogicalForm | None:
        return parse_sql(f"SELECT {name} FROM 1", "1", header, types).form

    assert read("MAX(kg)") == LogicalForm(0, 0, ())
    assert read("MAX (kg)") == LogicalForm(1, 1, ())
    assert read('"kg"') == LogicalForm(2, 0, ())
    assert read("`kg`") == LogicalForm(1, 0, ())
    assert read("[a]") == LogicalForm(3, 0, ())
    assert read('"a"') == LogicalForm(4, 0, ())
    assert read("Count (x)") == LogicalForm(5, 0, ())
    assert read("COUNT(x)") == LogicalForm(6, 3, ())
    assert read('MAX("MAX(kg)")') == LogicalForm(0, 1, ())


def test_names_whose_lower_case_is_longer() -> None:
    header = ("İl", "Nüfus İİ")
    parsed = parse_sql("SELECT İl FROM İ1 WHERE Nüfus  İİ > 5", "İ1", header, ("text", "real"))
    assert parsed.form == LogicalForm(0, 0, ((1, 1, 5),))


def test_values_are_kept_as_they_were_written() -> None:
    text = "SELECT Player FROM 1-2-3 WHERE No. = 1,234 AND Score = '7.0' AND Player = 'O'Hara' AND From = 12"
    parsed = parse_sql(text, "1-2-3", HEADER, TYPES)
    assert parsed.literals == ("1,234", "7.0", "O'Hara", "12")
    assert parsed.form == LogicalForm(0, 0, ((1, 0, 1234), (2, 0, 7.0), (0, 0, "O'Hara"), (4, 0, "12")))


def test_detail_shows_the_place() -> None:
    parsed = parse_sql("SELECT Player FROM 1-2-3 WHERE Player = 'x' AND Team = 'y'", "1-2-3", HEADER, TYPES)
    assert parsed.detail == "at \"Team = 'y'\""


def test_what_cannot_be_decided_is_read_as_documented() -> None:
    longest = parse_sql("SELECT COUNT Score FROM 1", "1", ("Score", "COUNT Score"), ("text", "text"))
    assert longest.form == LogicalForm(1, 0, ())
    case_decides = parse_sql("SELECT COUNT Score FROM 1", "1", ("Score", "Count Score"), ("text", "text"))
    assert case_decides.form == LogicalForm(0, 3, ())
    first = parse_sql("SELECT a FROM 1", "1", ("a", "a"), ("text", "text"))
    assert first.form == LogicalForm(0, 0, ())
    header = ("Score", "Score = 1 AND Team", "Team")
    operator_in_name = parse_sql(
        "SELECT Team FROM 1 WHERE Score = 1 AND Team = 'x'", "1", header, ("real", "text", "text")
    )
    assert operator_in_name.form == LogicalForm(2, 0, ((1, 0, "x"),))
    by_case = parse_sql("SELECT A FROM 1 WHERE a = 'x'", "1", ("a", "A"), ("text", "text"))
    assert by_case.form == LogicalForm(1, 0, ((0, 0, "x"),))


@pytest.mark.parametrize("name", ["", " ", " Player", "Player ", "a\u00a0b"])
def test_names_with_odd_blanks(name: str) -> None:
    table = Table("1-2", ("No.", name), ("real", "text"), ())
    for form in (LogicalForm(1, 0, ()), LogicalForm(1, 3, ((1, 0, "x"), (0, 1, 5)))):
        assert parse_sql(render_sql(form, table), "1-2", table.header, table.types).form == form


@pytest.mark.parametrize(
    ("text", "number"),
    [("7", 7), ("-7", -7), ("+7", 7), ("1,234", 1234), ("1,234.5", 1234.5), (".5", 0.5), ("1e3", 1000.0), ("2.0", 2.0),
     ("9" * 30, float("9" * 30)), ("12,34", None), ("1995-96", None), ("", None), ("-", None), ("e5", None),
     ("5.", 5.0), ("5..", None)],
)  # fmt: skip
def test_numbers(text: str, number: float | None) -> None:
    assert parse_number(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "SELECT Player FROM 1-2-3 WHERE " + "Player = 'x' AND " * 3000,
        "SELECT Player FROM 1-2-3 WHERE " + "Player = 'x' AND " * 500 + "Player = 'x'",
        "SELECT Player FROM 1-2-3 WHERE " + "Player = 'x' AND " * 95 + "Player = 'x",
        "SELECT Player FROM 1-2-3 WHERE Player = '" + "' AND " * 1300,
        "SELECT " + " " * 9000,
        "SELECT Player" + " " * 9000 + "FROM",
        "SELECT Player FROM 1-2-3 WHERE Player = " + "'" * 9000 + "x",
        "SELECT Player FROM 1-2-3 WHERE No. = " + "9" * 9000,
        "SELECT Player FROM 1-2-3 WHERE No. = " + "1," * 4000,
    ],
)
def test_no_text_takes_long_or_fails(text: str) -> None:
    started = time.process_time()
    parse(text)
    assert time.process_time() - started < 2
