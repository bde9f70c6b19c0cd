"""The table that a question is asked about: a CSV file, or a table of an SQLite database."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlora.errors import SqloraError
from sqlora.import_csv.tables import read_csv_table
from sqlora.sql.database_uri import read_only_addresses
from sqlora.sql.execute import build_database
from sqlora.sql.sandbox import Cell, Sandbox, open_sandbox
from sqlora.wikisql.layout import Table

# What candidates are tried on: as many rows as the sandbox hands out, which has limits on bytes and time as well.
_MOST_ROWS = (100_000, 10_000, 1_000, 100, 10, 1)


@dataclass(frozen=True)
class Source:
    """A table to be asked about.

    table: with its rows, or the first of very many; name: in SQL; sandbox: over the user's own database, or one made of
    the CSV file; trial: a database as `sqlora.sql.execute` reads it, on which candidates are tried.
    """

    table: Table
    name: str
    sandbox: Sandbox
    trial: Path


@contextmanager
def open_csv(path: Path) -> Iterator[Source]:
    """Read a CSV file.

    Raises:
        SqloraError: whatever is wrong with it.
    """
    if not path.is_file():
        raise SqloraError(path, found="no such file", expected="a CSV file with a header", next_step="Check the path.")
    found = read_csv_table(path, (), None)
    if isinstance(found, list):
        raise found[0]
    with TemporaryDirectory() as scratch:
        database = Path(scratch) / "table.db"
        # SQLite keeps names that begin so for itself.
        name = "table " * (not found.name or found.name.lower().startswith("sqlite_")) + found.name
        table = found.table if found.table.id else dataclasses.replace(found.table, id="table")
        _write(database, name.strip(), table)
        with open_sandbox(database) as sandbox:
            yield Source(table, name.strip(), sandbox, _trial(Path(scratch), table))


@contextmanager
def open_sqlite(path: Path, name: str | None) -> Iterator[Source]:
    """Read a table, or view, of a database; without a name, the only one there is.

    Raises:
        SqloraError: no such database or table, or one without rows.
    """
    with open_sandbox(path) as sandbox, TemporaryDirectory() as scratch:
        tables = _tables(path)
        chosen = _find(name, tables)
        if chosen is None:
            raise SqloraError(
                path,
                found=f"no table {name}" if name else f"{len(tables)} tables",
                expected=f"one of {', '.join(tables[:20])}" if tables else "a database with a table",
                next_step="Name it with --table." if tables else "Check the path.",
            )
        for most in _MOST_ROWS:
            result = sandbox.run(f"SELECT * FROM {quoted(chosen)} LIMIT {most}")
            if result.failure not in ("too_large", "timeout"):
                break
        if result.failure or not result.rows:
            raise SqloraError(
                f"{path}, table {chosen}",
                found=f"rows that cannot be read ({result.detail})" if result.failure else "no row",
                expected="a table with rows",
                next_step="Ask about another table.",
            )
        rows = tuple(tuple(_plain(cell) for cell in row) for row in result.rows)
        types = tuple(_type([row[column] for row in rows]) for column in range(len(result.columns)))
        table = Table(chosen, result.columns, types, rows)
        yield Source(table, chosen, sandbox, _trial(Path(scratch), table))


def quoted(name: str) -> str:
    """A name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def _trial(folder: Path, table: Table) -> Path:
    build_database(folder / "trial.db", [table])
    return folder / "trial.db"


def _tables(path: Path) -> list[str]:
    try:
        with closing(sqlite3.connect(read_only_addresses(path.resolve()).journal, uri=True)) as connection:
            found = connection.execute(
                "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') "
                "AND name NOT LIKE 'sqlite~_%' ESCAPE '~' ORDER BY name"
            )
            return [str(name) for (name,) in found]
    except sqlite3.Error as error:
        raise SqloraError(
            path,
            found=f"a database that SQLite does not read ({error})",
            expected="a sound database",
            next_step="Check it with `sqlite3 FILE 'PRAGMA integrity_check'`.",
        ) from None


def _find(name: str | None, tables: list[str]) -> str | None:
    """The table of a name, in any letter case if there is none in the same; without a name, the only one."""
    if name is None:
        return tables[0] if len(tables) == 1 else None
    same = [table for table in tables if table == name] or [table for table in tables if table.lower() == name.lower()]
    return same[0] if same else None


def _plain(cell: Cell) -> str | int | float | None:
    return cell.hex() if isinstance(cell, bytes) else cell


def _type(cells: list[str | int | float | None]) -> str:
    filled = [cell for cell in cells if cell is not None]
    return "real" if filled and not any(isinstance(cell, str) for cell in filled) else "text"


def _write(path: Path, name: str, table: Table) -> None:
    kinds = {"text": "TEXT", "real": "REAL"}
    # Without a type, whole numbers stay whole.
    columns = ", ".join(
        f"{quoted(column)} {kinds[kind] if kind == 'text' else ''}".strip()
        for column, kind in zip(table.header, table.types, strict=True)
    )
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.execute(f"CREATE TABLE {quoted(name)} ({columns})")
        marks = ", ".join("?" * len(table.header))
        connection.executemany(f"INSERT INTO {quoted(name)} VALUES ({marks})", table.rows)
        connection.execute("COMMIT")
