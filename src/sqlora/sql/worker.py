"""The process that runs statements for `sqlora.sql.sandbox`: one read-only connection behind SQLite's own barriers.

Run as a script, never imported by the host; needs the standard library and apsw only. It reads frames from stdin and
writes frames to stdout until stdin closes. A frame is one byte that says what follows, four bytes of its length
(big-endian), and JSON in UTF-8. To the worker: C (once: settings), then Q ([statement, values]) for every statement.
From it: H (ready) or X (why it is not), then for every statement any number of R (an array of rows) and D (forget the
rows so far), and E ({"columns", "failure", "detail"}). A blob in a row is {"x": hexadecimal digits}.

The barriers are those that SQLite names for hostile SQL and hostile files (https://sqlite.org/security.html).
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import struct
import sys
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

import apsw

_HEADER = struct.Struct(">cI")
_CHUNK = 1 << 16
_OPCODES = 500  # between two looks at the clock; one opcode can copy a whole value
_OPENING_SECONDS = 10.0  # CPU time to read the schema
_GRACE_SECONDS = 0.5  # CPU time after the deadline before the process is killed
_ADDRESS_SPACE = 64 << 20  # for Python's own objects, beyond what SQLite may take

# Left out on purpose: whatever reads or writes files, makes values out of nothing (randomblob, zeroblob, printf,
# format), looks at SQLite itself, or is random. Dates are let through, `now` included.
_FUNCTIONS = """
    avg count group_concat max median min percentile percentile_cont percentile_disc string_agg sum total
    json_group_array json_group_object
    cume_dist dense_rank first_value lag last_value lead nth_value ntile percent_rank rank row_number
    abs char coalesce concat concat_ws glob hex if ifnull iif instr length like likelihood likely lower ltrim nullif
    octet_length quote replace round rtrim sign substr substring trim typeof unhex unicode unlikely upper
    acos acosh asin asinh atan atan2 atanh ceil ceiling cos cosh degrees exp floor ln log log10 log2 mod pi pow power
    radians sin sinh sqrt tan tanh trunc
    current_date current_time current_timestamp date datetime julianday strftime time timediff unixepoch
    json json_array_length json_extract json_type json_valid -> ->>
"""
_ALLOWED = frozenset(_FUNCTIONS.split())
_CONFIG = {
    apsw.SQLITE_DBCONFIG_DEFENSIVE: 1,
    apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA: 0,
    apsw.SQLITE_DBCONFIG_DQS_DML: 0,  # else an unknown "column" is a text, and "x" = "x" is true in every row
    apsw.SQLITE_DBCONFIG_DQS_DDL: 0,
    apsw.SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION: 0,
    apsw.SQLITE_DBCONFIG_ENABLE_FTS3_TOKENIZER: 0,
    apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER: 0,
    apsw.SQLITE_DBCONFIG_ENABLE_ATTACH_CREATE: 0,
    apsw.SQLITE_DBCONFIG_ENABLE_ATTACH_WRITE: 0,
    apsw.SQLITE_DBCONFIG_WRITABLE_SCHEMA: 0,
    apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE: 1,
}
_PRAGMAS = {"query_only": 1, "temp_store": 2, "mmap_size": 0, "cell_size_check": 1}
_LIMITS = {
    apsw.SQLITE_LIMIT_ATTACHED: 0,
    apsw.SQLITE_LIMIT_COMPOUND_SELECT: 50,
    apsw.SQLITE_LIMIT_EXPR_DEPTH: 500,
    apsw.SQLITE_LIMIT_FUNCTION_ARG: 100,
    apsw.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1_000,
    apsw.SQLITE_LIMIT_PARSER_DEPTH: 500,
    apsw.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
    apsw.SQLITE_LIMIT_TRIGGER_STEPS: 1,
    apsw.SQLITE_LIMIT_VARIABLE_NUMBER: 1_000,
    apsw.SQLITE_LIMIT_VDBE_OP: 250_000,
    apsw.SQLITE_LIMIT_WORKER_THREADS: 0,
}
_MESSAGES = (
    ("unknown_column", r"no such column: |cannot join using column "),
    ("wrong_table", r"no such table: "),
    ("bad_syntax", r'near ".*": syntax error|incomplete input|unrecognized token: '),
    (
        "refused",
        # What the authorizer, the flags and the limits above say.
        r"not authorized|access to .* is prohibited|unsafe use of |too many |at most \d+ tables in a join|"
        r"Expression tree is too large|Recursion limit|parser stack overflow|variable number must be |"
        r"LIKE or GLOB pattern too complex|.* may not be modified|cannot modify |"
        r"VIEWs and/or subqueries nested too deep",
    ),
)
_CLASSIFY = tuple((failure, re.compile(pattern, re.DOTALL)) for failure, pattern in _MESSAGES)
_BLANK = re.compile(r"(?:[ \t\n\f\r;]++|--[^\n]*+|/\*.*?(?:\*/|\Z))*+", re.DOTALL)


def main() -> None:
    """Serve until stdin closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the host's to handle
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # and unblocked: both are inherited
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    settings = _receive()
    if settings is None:
        return
    try:
        session = _Session(settings)
    except (apsw.Error, OSError, MemoryError, UnicodeError, ValueError) as error:
        unfinished = isinstance(error, apsw.ReadOnlyError)
        detail = (
            "a transaction that was never finished" if unfinished else getattr(error, "strerror", None) or str(error)
        )
        _send(b"X", _json(detail or "more than the memory allowed"))
        return
    _send(b"H", b"null")
    while (request := _receive()) is not None:
        session.answer(*request)


class _StatementError(Exception):
    """A statement's failure, and why."""


class _Session:
    """One connection, from which nothing but SELECT comes back."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._deadline = time.process_time() + _OPENING_SECONDS
        signal.setitimer(signal.ITIMER_PROF, _OPENING_SECONDS)
        _limit_process(settings["memory_bytes"])
        apsw.hard_heap_limit(settings["memory_bytes"])
        flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        self._connection = apsw.Connection(_uri(settings), flags=flags, statementcachesize=0)
        self._connection.set_busy_timeout(1_000)
        for option, value in _CONFIG.items():
            self._connection.config(option, value)
        for pragma, value in _PRAGMAS.items():
            self._connection.pragma(pragma, value)
        # Reads the schema, which may be longer than a statement may be, and opens a write-ahead log if there is one.
        self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        limits = _LIMITS | {
            apsw.SQLITE_LIMIT_SQL_LENGTH: settings["sql_length"],
            apsw.SQLITE_LIMIT_LENGTH: settings["value_bytes"],
            apsw.SQLITE_LIMIT_COLUMN: settings["columns"],
        }
        for limit, most in limits.items():
            self._connection.limit(limit, most)
        self._connection.authorizer = _authorize
        self._connection.set_progress_handler(lambda: time.process_time() > self._deadline, _OPCODES)
        time.localtime()  # reads the time zone, for date(…, 'localtime')
        # From here on no file can be opened at all, so none can appear. Those that are open stay usable.
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))

    def answer(self, sql: str, values: dict[str, Any]) -> None:
        """Run one statement; send its rows and how it ended."""
        self._deadline = time.process_time() + self._settings["seconds"]
        signal.setitimer(signal.ITIMER_PROF, self._settings["seconds"] + _GRACE_SECONDS)
        self._columns: list[str] = []
        failure, detail = None, ""
        try:
            try:
                self._select(sql, values, tuple)
            except UnicodeDecodeError:
                if not self._columns:
                    raise  # a name of a column
                columns = self._columns
                _send(b"D", b"null")
                self._select(_as_bytes(sql[: self._end], len(columns)), values, _from_bytes)
                self._columns = columns
        except Exception as error:  # noqa: BLE001 - whatever happens is this statement's failure
            failure, detail = _classify(error)
        _send(b"E", _json({"columns": [] if failure else self._columns, "failure": failure, "detail": detail}))

    def _select(self, sql: str, values: dict[str, Any], convert: Callable[[Any], Any]) -> None:
        self._end, found = 0, False

        def check(cursor: apsw.Cursor, statement: str, _: object) -> bool:
            nonlocal found
            if not cursor.has_vdbe:  # blanks and comments
                self._end += len(statement)
                return True
            columns = cursor.get_description()  # none: what found nothing to do asked for no permission, as REINDEX
            if cursor.is_explain or not cursor.is_readonly or not columns:
                raise _StatementError("refused", "only SELECT is allowed")
            rest = _BLANK.match(sql, self._end + len(statement))
            if found or not rest or rest.end() < len(sql):
                raise _StatementError("bad_syntax", "more than one statement")
            found = True
            self._end += len(statement)
            self._columns = [name for name, _ in columns]
            return True

        cursor = self._connection.cursor()
        cursor.exec_trace = check
        try:
            cursor.execute(sql, values, can_cache=False, prepare_flags=apsw.SQLITE_PREPARE_NO_VTAB)
            self._send_rows(cursor, convert)
        finally:
            cursor.close(True)
        if not found:
            raise _StatementError("bad_syntax", "no statement")

    def _send_rows(self, cursor: apsw.Cursor, convert: Callable[[Any], Any]) -> None:
        parts: list[bytes] = []
        pending = total = 0
        for number, row in enumerate(cursor, 1):
            started = time.process_time()
            if number > self._settings["rows"]:
                raise _StatementError("too_many_rows", f"more than {self._settings['rows']:,} rows")
            parts.append(_json(convert(row)))
            pending += len(parts[-1]) + 1
            total += len(parts[-1]) + 1
            if total > self._settings["result_bytes"]:
                raise _StatementError("too_large", f"a result of more than {self._settings['result_bytes']:,} bytes")
            # The statement is not charged for what the pipe costs.
            if pending > _CHUNK:
                _send(b"R", b"[" + b",".join(parts) + b"]")
                parts, pending = [], 0
                signal.setitimer(signal.ITIMER_PROF, max(self._deadline - started, 0) + _GRACE_SECONDS)
            self._deadline += time.process_time() - started
        if parts:
            _send(b"R", b"[" + b",".join(parts) + b"]")


def _authorize(action: int, first: str | None, second: str | None, database: str | None, _: str | None) -> int:
    allowed = (
        action == apsw.SQLITE_SELECT
        # No database is named where only the number of rows matters; the name may be that of a subquery then.
        or (action == apsw.SQLITE_READ and database in ("main", None) and not str(first).lower().startswith("sqlite_"))
        or (action == apsw.SQLITE_FUNCTION and second in _ALLOWED)
    )
    return apsw.SQLITE_OK if allowed else apsw.SQLITE_DENY


def _uri(settings: dict[str, Any]) -> str:
    path = urllib.parse.unquote_to_bytes(urllib.parse.urlsplit(settings["journal"]).path)
    with open(path, "rb") as file:
        header = file.read(20)
    if header[:16] != b"SQLite format 3\0":
        raise ValueError("a file of another kind" if header else "an empty file")
    uri = settings["log" if 2 in header[18:20] else "journal"]
    if uri is None:
        raise ValueError("a write-ahead log with changes that are not in the database yet")
    return str(uri)


def _limit_process(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform == "linux":  # macOS does not enforce it
        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        most = now + memory_bytes + _ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _classify(error: Exception) -> tuple[str, str]:
    detail = str(error)
    match error:
        case _StatementError():
            failure, detail = error.args
        case apsw.AuthError():
            failure = "refused"
        case apsw.InterruptError():
            failure, detail = "timeout", "too much computing time"
        case apsw.TooBigError():
            failure = "too_large"
        case apsw.NoMemError() | MemoryError():
            failure, detail = "too_large", "too much memory"
        case KeyError():
            failure, detail = "sql_error", f"no value for the parameter {detail}"
        case apsw.BindingsError():
            failure, detail = "sql_error", "a parameter without a name"
        case apsw.SQLError():
            failure = next((name for name, pattern in _CLASSIFY if pattern.match(detail)), "sql_error")
        case _:
            failure = "sql_error"
    return failure, detail[:1000]


def _as_bytes(sql: str, width: int) -> str:
    names = [f"c{index}" for index in range(width)]
    cells = ", ".join(
        f"CASE typeof({name}) WHEN 'text' THEN CAST('t' || {name} AS BLOB) "
        f"WHEN 'blob' THEN CAST('b' || {name} AS BLOB) ELSE {name} END"
        for name in names
    )
    sql = sql.rstrip(" \t\n\f\r;")
    return f'WITH "sqlora result"({", ".join(names)}) AS MATERIALIZED ({sql}\n) SELECT {cells} FROM "sqlora result"'


def _from_bytes(row: tuple[Any, ...]) -> list[Any]:
    return [_from_tagged(cell) if isinstance(cell, bytes) else cell for cell in row]


def _from_tagged(cell: bytes) -> str | bytes:
    return cell[1:].decode("utf-8", "replace") if cell[:1] == b"t" else cell[1:]


def _hexadecimal(value: object) -> dict[str, str]:
    if not isinstance(value, bytes):
        raise TypeError(type(value).__name__)
    return {"x": value.hex()}


_ENCODER = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":"), default=_hexadecimal)


def _json(value: object) -> bytes:
    return _ENCODER.encode(value).encode("utf-8", "replace")


def _send(kind: bytes, data: bytes) -> None:
    rest = memoryview(_HEADER.pack(kind, len(data)) + data)
    while rest:
        rest = rest[os.write(1, rest) :]


def _receive() -> Any:
    """The next frame's value; None when the host is gone."""
    header = _read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    length = _HEADER.unpack(header)[1]
    data = _read(length)
    return json.loads(data) if len(data) == length else None


def _read(length: int) -> bytes:
    parts = []
    while length and (part := os.read(0, min(length, _CHUNK))):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


if __name__ == "__main__":
    main()
