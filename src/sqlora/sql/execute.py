"""Builds the database of WikiSQL tables and executes logical forms on it, as the official engine does.

Semantics: salesforce/WikiSQL, lib/dbengine.py (Zhong et al., 2017). Texts are stored and compared in lower case; a text
compared with a `real` column is read as a number; of two conditions on one column the official engine binds
the last value to both. Names are quoted and values bound here, so no value can become SQL.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from sqlora.errors import SqloraError
from sqlora.wikisql.form import AGGREGATES, OPERATORS, LogicalForm, Schema, Value

Failure = Literal["bad_value", "timeout", "too_many_rows", "sql_error"]

SECONDS = 5.0
ROWS = 100_000

_NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")  # the official engine's: a sign counts only before a decimal point
_OPCODES = 10_000  # between two looks at the clock


@dataclass(frozen=True, slots=True)
class Execution:
    """rows: the selected value of each row, in the database's order; failure: why there are none, or None."""

    rows: tuple[Any, ...] = ()
    failure: Failure | None = None


class Runner(Protocol):
    """Runs one statement with its bound values; never raises for a statement that fails."""

    def run(self, sql: str, values: Mapping[str, Value]) -> Execution: ...


class TableRows(Schema, Protocol):
    """A schema and the table's cells; rows[i][j] is the cell of row i and column j."""

    @property
    def rows(self) -> Sequence[Sequence[Any]]: ...


def execute(form: LogicalForm, table: Schema, runner: Runner) -> Execution:
    """Execute a logical form; a query that fails is an Execution with a failure, never an exception."""
    values: dict[str, Value] = {}
    terms = []
    for column, operator, value in form.conds:
        bound = _bound(value, table.types[column])
        if bound is None:
            return Execution(failure="bad_value")
        values[f"col{column}"] = bound
        terms.append(f't."col{column}" {OPERATORS[operator]} :col{column}')
    # The alias keeps SQLite from taking a column that is missing for a text in double quotes.
    sql = f'SELECT {AGGREGATES[form.agg]}(t."col{form.sel}") FROM {_quoted(table_name(table.id))} AS t'
    return runner.run(sql + " WHERE " * bool(terms) + " AND ".join(terms), values)


@contextmanager
def open_database(path: Path) -> Iterator[Runner]:
    """A runner over a read-only connection, with a deadline for each statement and a cap on its rows."""
    next_step = "Delete it and run dvc repro to draw the split again."
    if not path.is_file():
        raise SqloraError(path, found="no such file", expected="the database of the tables", next_step=next_step)
    with closing(sqlite3.connect(path.resolve().as_uri() + "?mode=ro", uri=True)) as connection:
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error as error:
            raise SqloraError(path, found=str(error), expected="an SQLite database", next_step=next_step) from None
        yield _Connection(connection)


class _Connection:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._deadline = 0.0
        connection.set_progress_handler(lambda: time.monotonic() > self._deadline, _OPCODES)

    def run(self, sql: str, values: Mapping[str, Value]) -> Execution:
        self._deadline = time.monotonic() + SECONDS
        try:
            with closing(self._connection.execute(sql, values)) as cursor:
                rows = cursor.fetchmany(ROWS + 1)
        except (sqlite3.Error, sqlite3.Warning, OverflowError, ValueError, MemoryError):
            return Execution(failure="timeout" if time.monotonic() > self._deadline else "sql_error")
        if len(rows) > ROWS:
            return Execution(failure="too_many_rows")
        return Execution(tuple(row[0] for row in rows))


def build_database(path: Path, tables: Iterable[TableRows]) -> None:
    """Write the tables as the official databases hold them: table_1_2_3 (col0 real, col1 text, …), texts lower-cased.

    Raises:
        SqloraError: naming the table that SQLite cannot hold.
    """
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")  # the file is published when complete or not at all
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        for table in tables:
            name = _quoted(table_name(table.id))
            columns = ", ".join(f"col{index} {kind}" for index, kind in enumerate(table.types))
            marks = ", ".join("?" * len(table.types))
            try:
                connection.execute(f"CREATE TABLE {name} ({columns})")
                connection.executemany(f"INSERT INTO {name} VALUES ({marks})", map(_stored, table.rows))
            except (sqlite3.Error, OverflowError, ValueError) as error:
                raise SqloraError(
                    f"table {table.id}",
                    found=f"a table that SQLite refuses ({error})",
                    expected="an id of its own (- and _ count as one), at most 2,000 columns, numbers of 64 bits",
                    next_step="Mend the table in the source that data.source names.",
                ) from None
        connection.execute("COMMIT")
    # Bytes 96 to 99 hold the version of the SQLite that wrote the file; nothing reads them. Without them, equal
    # tables give equal bytes, and DVC sees no change, whichever Python wrote them.
    with open(path, "r+b") as handle:
        handle.seek(96)
        handle.write(bytes(4))


def table_name(table_id: str) -> str:
    """The name of a table in the official databases."""
    return "table_" + table_id.replace("-", "_")


def _stored(row: Sequence[Any]) -> list[Any]:
    return [cell.lower() if isinstance(cell, str) else cell for cell in row]


def _bound(value: Value, kind: str) -> Value | None:
    """The value as the official engine binds it; None if a `real` column is compared with a text without a digit."""
    if not isinstance(value, str):
        # SQLite binds whole numbers of 64 bits; comparisons with larger ones come out the same as with infinity.
        return value if abs(value) < 2**63 else float("inf" if value > 0 else "-inf")
    if kind != "real":
        return value.lower()
    try:
        return float(value.replace(",", ""))
    except ValueError:
        found = _NUMBER.search(value)
        return float(found.group()) if found else None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
