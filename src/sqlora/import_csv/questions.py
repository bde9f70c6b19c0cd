"""Reads a file of questions about CSV tables, one JSON object a line, the query as SQL or as WikiSQL's logical form."""

from __future__ import annotations

import json
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from sqlora.errors import SqloraError
from sqlora.import_csv.tables import CsvFolder, CsvTable, fold, read_number, stem, table_key
from sqlora.sql.parse import parse_sql
from sqlora.text import render_sql
from sqlora.wikisql.form import AGGREGATES, OPERATORS, Condition, LogicalForm, read_form, read_texts
from sqlora.wikisql.layout import PARTS, Question, Table

_KEYS = {"table", "table_id", "question", "sql", "part"}
_MEND = "Mend that line and run the same command again."
_DIALECT = "SELECT [MAX|MIN|COUNT|SUM|AVG] column FROM table [WHERE column =|<|> value AND …]"
_SUM, _AVG = AGGREGATES.index("SUM"), AGGREGATES.index("AVG")


@dataclass(frozen=True)
class Asked:
    """One question; where: its file and line; part: the part that it pins its table to, or None."""

    where: str
    question: Question
    part: str | None


@dataclass(frozen=True)
class QuestionFile:
    """problems: one for each bad line; ignored: the keys that mean nothing here, in alphabetical order."""

    asked: tuple[Asked, ...]
    problems: tuple[SqloraError, ...]
    ignored: tuple[str, ...]


def read_question_file(path: Path, folder: CsvFolder) -> QuestionFile:
    """Read {"table": …, "question": …, "sql": …, "part": …} lines; blank lines are skipped.

    A question about a table of `folder.broken` is left out without a word, because its query cannot be read.

    Raises:
        SqloraError: if the file cannot be read. A bad line is collected instead.
    """
    asked: list[Asked] = []
    problems: list[SqloraError] = []
    ignored: set[str] = set()
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise SqloraError(
            path,
            found=error.strerror or str(error),
            expected="a file of questions, one JSON object a line",
            next_step="Correct the path.",
        ) from None
    for number, raw in enumerate(lines, 1):
        where = f"{path}:{number}"
        try:
            if raw.strip():
                record = _load(where, raw)
                question = _read(where, record, folder)
                asked += [question] if question else []
                ignored |= record.keys() - _KEYS
        except SqloraError as error:
            problems.append(error)
    return QuestionFile(tuple(asked), tuple(problems), tuple(sorted(ignored)))


def _bad(where: str, found: str, expected: str) -> SqloraError:
    return SqloraError(where, found=found, expected=expected, next_step=_MEND)


def _load(where: str, raw: bytes) -> dict[str, Any]:
    # read_jsonl ends at the first bad line; here all of them are wanted.
    try:
        text = json.dumps(json.loads(raw.decode("utf-8"), parse_constant=_refuse), ensure_ascii=False)
        text.encode("utf-8")  # half of a surrogate pair cannot be written
        record = json.loads(unicodedata.normalize("NFC", text), parse_constant=_refuse)  # as the tables are
    except (ValueError, RecursionError) as error:
        raise _bad(where, f"a line that is no JSON ({error})", "one JSON object in UTF-8") from None
    if not isinstance(record, dict):
        raise _bad(where, f"a JSON {type(record).__name__}", "one JSON object")
    return record


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _read(where: str, record: dict[str, Any], folder: CsvFolder) -> Asked | None:
    if "table" in record and "table_id" in record:
        raise _bad(where, "both table and table_id", "one of them")
    key = "table_id" if "table_id" in record else "table"
    given, question = read_texts(where, record, [key, "question"], _MEND)
    question = question.strip()
    if len(question.splitlines()) != 1:
        raise _bad(where, f"question {question!r:.80}", "a question in one line")
    part = record.get("part")
    if part is not None and part not in PARTS:
        raise _bad(where, f"part {part!r:.80}", f"one of {', '.join(PARTS)}, or no key part")
    table = folder.tables.get(table_key(given))
    if table is None and table_key(given) in folder.broken:
        return None
    if table is None:
        names = ", ".join(table.name for table in folder.tables.values()) or "the CSV files"
        raise _bad(where, f"table {given!r:.80}", f"one of {_short(names)}")
    sql = record.get("sql")
    if isinstance(sql, str):
        form = _parse(where, sql, given, table)
    elif isinstance(sql, dict):
        form = _translate(where, sql, table.table)
    else:
        found = f"sql {sql!r:.80}" if "sql" in record else "no key sql"
        raise _bad(where, found, f"a query ({_DIALECT}), or an object with sel, agg and conds")
    form = LogicalForm(form.sel, form.agg, tuple(_fitted(where, cond, table.table) for cond in form.conds))
    _check(where, form, table.table)
    return Asked(where, Question(table.table.id, question, form), part)


def _parse(where: str, sql: str, given: str, table: CsvTable) -> LogicalForm:
    text = sql.strip()
    header, types = table.table.header, table.table.types
    # A file's name may hold what the table's id cannot; in FROM any of its spellings will do.
    tried = [parse_sql(text, name, header, types) for name in dict.fromkeys((table.name, table.table.id, stem(given)))]
    parsed = next((one for one in tried if one.outcome != "wrong_table"), tried[0])
    if parsed.form is None:
        expected = {
            "wrong_table": f"FROM {table.name}",
            "unknown_column": f"one of the columns {_columns(table.table)}",
        }.get(parsed.outcome, f"{_DIALECT}; texts in single quotes; columns {_columns(table.table)}")
        raise _bad(where, f"sql {text!r:.200} ({parsed.outcome} {parsed.detail})", expected)
    return parsed.form


def _translate(where: str, sql: dict[str, Any], table: Table) -> LogicalForm:
    """WikiSQL's form, in which columns, the aggregate and operators may be given by name as well as by index."""

    def named(value: Any, names: Sequence[str], what: str) -> Any:
        if not isinstance(value, str):
            return value
        folded = [fold(name) for name in names]
        if fold(value) not in folded:
            raise _bad(where, f"{what} {value!r:.80}", f"one of {_short(', '.join(name or '``' for name in names))}")
        return folded.index(fold(value))

    conds = sql.get("conds")
    if isinstance(conds, list):
        conds = [
            [named(cond[0], table.header, "column"), named(cond[1], OPERATORS, "operator"), *cond[2:]]
            if isinstance(cond, list) and len(cond) == 3
            else cond
            for cond in conds
        ]
    translated = {
        "sel": named(sql.get("sel"), table.header, "column"),
        "agg": named(sql.get("agg"), AGGREGATES, "aggregate"),
        "conds": conds,
    }
    return read_form(where, translated, len(table.header), _MEND)


def _fitted(where: str, cond: Condition, table: Table) -> Condition:
    """The condition with its value as a number for a `real` column and as a text for another."""
    column, operator, value = cond
    name, kind = table.header[column], table.types[column]
    if kind == "real" and isinstance(value, str):
        number = read_number(value.strip())
        if number is None:
            raise _bad(where, f"{value!r:.80} for column {name}", "a number, because every cell of the column is one")
        return column, operator, number
    if kind == "text" and not isinstance(value, str):
        return column, operator, str(value)
    return cond


def _check(where: str, form: LogicalForm, table: Table) -> None:
    if form.agg in (_SUM, _AVG) and table.types[form.sel] == "text":
        name = table.header[form.sel]
        raise _bad(where, f"{AGGREGATES[form.agg]} of column {name}, which is text", "a column of numbers")
    # The model learns and is scored by this text: what reads otherwise could never be answered right.
    sql = render_sql(form, table)
    parsed = parse_sql(sql, table.id, table.header, table.types)
    if parsed.form != form:
        raise _bad(
            where,
            f"a query that the text format cannot hold: {sql!r:.200} reads otherwise",
            "names of columns, and values, that cannot be taken for others",
        )


def _columns(table: Table) -> str:
    return _short(", ".join(f"{name} ({kind})" for name, kind in zip(table.header, table.types, strict=True)))


def _short(text: str) -> str:
    return textwrap.shorten(text, 300, placeholder=" …")
