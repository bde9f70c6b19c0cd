"""Builds the database of WikiSQL tables and executes logical forms on it, as the official engine does.

Semantics: salesforce/WikiSQL, lib/dbengine.py (Zhong et al., 2017). Texts are stored and compared in lower case; a text
compared with a `real` column is read as a number; of two conditions on one column the official engine binds
the last value to both. Names are quoted and values bound here, so no value can become SQL.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from sqlora.errors import SqloraError
from sqlora.sql.sandbox import Failure as SandboxFailure
from sqlora.sql.sandbox import Sandbox, open_sandbox
from sqlora.wikisql.form import AGGREGATES, OPERATORS, LogicalForm, Schema, Value

Failure = SandboxFailure | Literal["bad_value", "unsupported"]

_NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")  # the official engine's: a sign counts only before a decimal point


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


def execute(form: LogicalForm, table: Schema, runner: Runner, *, strict: bool = False) -> Execution:
    """Execute a logical form; a query that fails is an Execution with a failure, never an exception.

    Args:
        strict: whether each of two conditions on one column keeps its own value; the official engine binds the last
            value to both.
    """
    values: dict[str, Value] = {}
    terms = []
    for number, (column, operator, value) in enumerate(form.conds):
        bound = _bound(value, table.types[column])
        if bound is None:
            return Execution(failure="bad_value")
        name = f"value{number}" if strict else f"col{column}"
        values[name] = bound
        terms.append(f't."col{column}" {OPERATORS[operator]} :{name}')
    # The alias keeps SQLite from taking a column that is missing for a text in double quotes.
    sql = f'SELECT {AGGREGATES[form.agg]}(t."col{form.sel}") FROM {_quoted(table_name(table.id))} AS t'
    return runner.run(sql + " WHERE " * bool(terms) + " AND ".join(terms), values)


def overwrites(form: LogicalForm) -> bool:
    """Whether two conditions are on one column, so that the strict query is another one than the official one."""
    return len({column for column, _, _ in form.conds}) < len(form.conds)


@contextmanager
def open_database(path: Path) -> Iterator[Runner]:
    """A runner that executes in the sandbox: read-only, with bounds on time, memory and rows.

    Raises:
        SqloraError: if there is no such database.
    """
    with ExitStack() as stack:
        try:
            sandbox = stack.enter_context(open_sandbox(path))
        except SqloraError as error:
            if error.where != str(path.resolve()):
                raise  # no fault of the database
            raise SqloraError(
                path,
                found=error.found,
                expected="the database of the tables",
                next_step="Delete it and run dvc repro to draw the split again.",
            ) from None
        yield _Sandboxed(sandbox)


class _Sandboxed:
    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def run(self, sql: str, values: Mapping[str, Value]) -> Execution:
        result = self._sandbox.run(sql, values)
        if result.failure == "worker_died":
            # Not the doing of a statement that this module wrote; most likely the system was short of memory.
            result = self._sandbox.run(sql, values)
        return Execution(tuple(row[0] for row in result.rows), result.failure)


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
    """The name of a table in the official databases; ids that begin so are left as they are, as the evaluator does."""
    return table_id if table_id.startswith("table") else "table_" + table_id.replace("-", "_")


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
