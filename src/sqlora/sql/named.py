"""Executes SQL as text, on tables that have the names which the model was shown."""

from __future__ import annotations

import re
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from sqlora.errors import SqloraError
from sqlora.sql.execute import Execution, table_name
from sqlora.sql.sandbox import Sandbox, open_sandbox
from sqlora.wikisql.form import Schema

# A text, a quoted name or a comment, which is left alone, or the table's id.
_SKIPPED = r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/"


@contextmanager
def open_named(db: Path, tables: Iterable[Schema]) -> Iterator[Sandbox]:
    """A sandbox over a copy of `tables` of tables.db in which a table is called by its id, a column by its header.

    Texts compare without regard to letter case, because the database holds them in lower case. Of columns
    whose names differ in letter case alone, which SQLite takes for one name, the later ones get a number.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "named.db"
        try:
            _copy(db, path, {table.id: table for table in tables}.values())
        except (sqlite3.Error, ValueError) as error:
            raise SqloraError(
                db,
                found=f"tables that cannot be copied ({error})",
                expected="every table of the test split, with an id that SQLite takes for a name",
                next_step="Delete the file and run dvc repro, or set score.execute in params.yaml to form.",
            ) from None
        with open_sandbox(path) as sandbox:
            yield sandbox


def execute_text(sql: str, table: Schema, sandbox: Sandbox) -> Execution:
    """Execute an answer as it stands, but for texts, which become lower case as the database's are, and the table's id,
    which is put in quotes where it stands bare.

    An answer of more than one column fails with `unsupported`: no gold query gives one.
    """

    def quote(found: re.Match[str]) -> str:
        if found["id"]:
            return _quoted(table.id)
        return found[0].lower() if found[0].startswith("'") else found[0]

    id_ = rf"(?<![\w-])(?P<id>{re.escape(table.id)})(?![\w-])"
    result = sandbox.run(re.sub(rf"{_SKIPPED}|{id_}", quote, sql, flags=re.S | re.I))
    if result.failure:
        return Execution(failure=result.failure)
    if len(result.columns) != 1:
        return Execution(failure="unsupported")
    return Execution(tuple(row[0] for row in result.rows))


def _copy(db: Path, path: Path, tables: Iterable[Schema]) -> None:
    with closing(sqlite3.connect(path, isolation_level=None, uri=True)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("ATTACH ? AS original", (f"{db.resolve().as_uri()}?mode=ro",))
        connection.execute("BEGIN")
        for table in tables:
            columns = ", ".join(
                f"{_quoted(name)} {kind} COLLATE NOCASE"
                for name, kind in zip(_distinct(table.header), table.types, strict=True)
            )
            connection.execute(f"CREATE TABLE main.{_quoted(table.id)} ({columns})")
            connection.execute(
                f"INSERT INTO main.{_quoted(table.id)} SELECT * FROM original.{_quoted(table_name(table.id))}"
            )
        connection.execute("COMMIT")


def _distinct(header: Sequence[str]) -> list[str]:
    names: list[str] = []
    taken: set[str] = set()
    for number, name in enumerate(header, 1):
        # A name as SQLite compares it; it has no name for a NUL.
        name = name.strip().replace("\0", " ") or f"column {number}"
        while name.lower() in taken:
            name += f" ({number})"
        taken.add(name.lower())
        names.append(name)
    return names


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
