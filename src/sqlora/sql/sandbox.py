"""Runs SQL that nobody has checked, in a process of its own that can do nothing but read one database.

The process is `sqlora.sql.worker`, which also says how the two talk. This side starts it, gives it statements,
distrusts what comes back, and replaces it when it dies or hangs.
"""

from __future__ import annotations

import importlib.util
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

from sqlora.errors import SqloraError
from sqlora.sql.channel import Channel, EndedError, NoAnswerError, NonsenseError, frame
from sqlora.sql.database_uri import read_only_addresses, unreadable

Cell = str | int | float | bytes | None
Failure = Literal[
    "bad_syntax",
    "unknown_column",
    "wrong_table",
    "refused",
    "timeout",
    "too_many_rows",
    "too_large",
    "worker_died",
    "sql_error",
]

_WORKER = Path(__file__).with_name("worker.py")
_STARTS = 3
_NO_VALUES: Mapping[str, str | int | float] = MappingProxyType({})
_FAILURES: dict[str, Failure] = {name: name for name in get_args(Failure)}
_PLAIN = frozenset({str, int, float, type(None)})
_BROKEN = (EndedError, NoAnswerError, NonsenseError)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one statement may take.

    Args:
        seconds: CPU time to prepare and run it; half a second later the process is killed.
        wall_seconds: time by the clock until the answer; meant for a process that hangs, not for a slow machine.
        rows: in the result.
        columns: in the result and in any of its parts; SQLite's own bound is 2,000.
        value_bytes: of one value, in the database or made by the statement.
        result_bytes: of the whole result as JSON in UTF-8 (a blob as hexadecimal digits).
        sql_length: of the statement, in bytes of UTF-8.
        memory_bytes: what SQLite may allocate. Python takes about 25 MB more and, on Linux, at most 64 MB beyond that.
    """

    seconds: float = 1.0
    wall_seconds: float = 30.0
    rows: int = 100_000
    columns: int = 2_000
    value_bytes: int = 1_000_000
    result_bytes: int = 16_000_000
    sql_length: int = 100_000
    memory_bytes: int = 64_000_000


@dataclass(frozen=True, slots=True)
class Result:
    """What a statement came to.

    Args:
        columns: the names; none if it failed.
        rows: a tuple of cells each, in the database's order; none if it failed.
        failure: why it failed, or None.
        detail: the same for people, in one line without control characters.
    """

    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()
    failure: Failure | None = None
    detail: str = ""


@contextmanager
def open_sandbox(database: Path, limits: Limits = Limits()) -> Iterator[Sandbox]:
    """A sandbox over a database that stays as it is: nothing is written to it, and no file appears beside it.

    Raises:
        SqloraError: no such file, no SQLite database, one that cannot be read without writing beside it, or no process
            can be started.
    """
    sandbox = Sandbox(database, limits)
    try:
        sandbox.start()
        yield sandbox
    finally:
        sandbox.close()


class Sandbox:
    """Runs one statement after another; not for several threads at once. Made by `open_sandbox`."""

    def __init__(self, database: Path, limits: Limits) -> None:
        self._database = database.resolve()
        self._limits = limits
        self._worker: Channel | None = None

    @property
    def pid(self) -> int | None:
        """The worker's process id; None while there is none."""
        return self._worker.pid if self._worker else None

    def run(self, sql: str, values: Mapping[str, str | int | float] = _NO_VALUES) -> Result:
        """Run one SELECT with its named parameters bound; whatever the statement is or does becomes a Result.

        Args:
            sql: a statement; `:name` in it stands for values["name"].

        Raises:
            SqloraError: the database can no longer be read, or no process can be started.
        """
        problem = _problem(sql, values, self._limits)
        if problem:
            return problem
        request = frame(b"Q", [sql, dict(values)])
        try:
            return self._exchange(self.start(), request)
        except NoAnswerError:
            self.close()
            return _failed("timeout", f"no answer within {self._limits.wall_seconds:g} seconds")
        except EndedError as error:
            self.close()
            if error.status == -signal.SIGPROF:
                return _failed("timeout", "too much computing time in one step")
            return _failed("worker_died", str(error))
        except NonsenseError as error:
            self.close()
            return _failed("worker_died", str(error))
        except BaseException:
            self.close()  # a later statement must not get this one's answer
            raise

    def start(self) -> Channel:
        """The worker, ready; a fresh one if there is none or the last one died.

        Raises:
            SqloraError: as for `open_sandbox`.
        """
        if self._worker and self._worker.alive():
            return self._worker
        problem = ""
        for _ in range(_STARTS):
            self.close()
            settings = asdict(self._limits) | asdict(read_only_addresses(self._database))
            deadline = time.monotonic() + self._limits.wall_seconds
            try:
                self._worker = Channel(_WORKER, self._limits.result_bytes + (1 << 20))
                self._worker.write(frame(b"C", settings), deadline)
                kind, refusal, _ = self._worker.read(deadline)
            except (*_BROKEN, OSError, ValueError) as error:
                problem = str(error) or "it does not answer"
                continue
            if kind == b"H":
                return self._worker
            self.close()
            raise unreadable(self._database, _line(refusal))
        self.close()
        no_apsw = importlib.util.find_spec("apsw") is None
        raise SqloraError(
            sys.executable or "python",
            found="no package apsw" if no_apsw else f"no process to run SQL in, after {_STARTS} attempts ({problem})",
            expected="one that starts",
            next_step="Run `pip install -r requirements.txt` in this environment."
            if no_apsw
            else "Make sure that memory and processes are left on this machine, and run again.",
        )

    def close(self) -> None:
        """End the worker, whatever it is doing."""
        worker, self._worker = self._worker, None
        if worker:
            worker.end()

    def _exchange(self, worker: Channel, request: bytes) -> Result:
        deadline = time.monotonic() + self._limits.wall_seconds
        worker.write(request, deadline)
        rows: list[tuple[Cell, ...]] = []
        size, restarted = 0, False
        while True:
            kind, value, length = worker.read(deadline)
            if kind == b"E":
                return _result(value, rows)
            if kind == b"R":
                rows += _rows(value)
                size += length
            elif kind == b"D" and not restarted:
                rows, size, restarted = [], 0, True
            else:
                raise NonsenseError
            if len(rows) > self._limits.rows or size > self._limits.result_bytes + (1 << 20):
                raise NonsenseError


def _problem(sql: str, values: Mapping[str, str | int | float], limits: Limits) -> Result | None:
    """What is wrong with a statement that no database needs to see."""
    length = _utf8_length(sql)
    if length is None or "\0" in sql:
        return _failed("bad_syntax", "a character that no statement can hold")
    if length > limits.sql_length:
        return _failed("refused", f"a statement of more than {limits.sql_length:,} bytes")
    for name, value in values.items():
        if isinstance(value, str):
            length = _utf8_length(value)
            if length is None:
                return _failed("sql_error", f"the value of {name} has a character that no text can hold")
            if length > limits.value_bytes:
                return _failed("too_large", f"the value of {name} has more than {limits.value_bytes:,} bytes")
        elif not isinstance(value, float) and not (isinstance(value, int) and -(2**63) <= value < 2**63):
            return _failed("sql_error", f"the value of {name} is no text and no number of 64 bits")
    return None


def _utf8_length(text: str) -> int | None:
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError:
        return None


def _failed(failure: Failure, detail: str) -> Result:
    return Result(failure=failure, detail=_line(detail))


def _line(text: object) -> str:
    return "".join(character if character.isprintable() else " " for character in str(text)[:300])


def _rows(chunk: object) -> list[tuple[Cell, ...]]:
    if not isinstance(chunk, list) or not chunk or not all(isinstance(row, list) for row in chunk):
        raise NonsenseError
    return [tuple(row) if _PLAIN.issuperset(map(type, row)) else tuple(map(_cell, row)) for row in chunk]


def _cell(value: object) -> Cell:
    match value:
        case bool():
            raise NonsenseError
        case None | str() | int() | float():
            return value
        case {"x": str(digits), **rest} if not rest:
            try:
                return bytes.fromhex(digits)
            except ValueError:
                raise NonsenseError from None
    raise NonsenseError


def _result(end: object, rows: list[tuple[Cell, ...]]) -> Result:
    match end:
        case {"failure": str(failure), "detail": str(detail)} if failure in _FAILURES:
            return _failed(_FAILURES[failure], detail)
        case {"failure": None, "columns": list(columns)} if all(isinstance(name, str) for name in columns):
            if all(len(row) == len(columns) for row in rows):
                return Result(tuple(columns), tuple(rows))
    raise NonsenseError
