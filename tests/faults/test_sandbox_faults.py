"""Workers that die, hang or lie; databases that are damaged, busy, half-written or hostile."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from sqlora.errors import SqloraError
from sqlora.sql import sandbox as module
from sqlora.sql.sandbox import Limits, Sandbox, open_sandbox

COUNT = "SELECT count(*) FROM t"
ENDLESS = "SELECT count(*) FROM t AS a, t AS b, t AS c, t AS d"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "user.db"
    path.parent.mkdir()
    change(
        path, "CREATE TABLE t (a, b)", "INSERT INTO t SELECT value, hex(value) FROM json_each('[" + "1," * 999 + "1]')"
    )
    return path


@pytest.fixture
def sandbox(database: Path) -> Iterator[Sandbox]:
    with open_sandbox(database, Limits(wall_seconds=20, seconds=10)) as sandbox:
        yield sandbox


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def beside(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir())


def pid_of(sandbox: Sandbox) -> int:
    assert sandbox.pid is not None
    return sandbox.pid


# Workers.


def test_a_worker_killed_between_statements_is_not_noticed(sandbox: Sandbox) -> None:
    for _ in range(3):
        os.kill(pid_of(sandbox), signal.SIGKILL)
        while psutil.Process(sandbox.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert sandbox.run(COUNT).rows == ((1000,),)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_worker_killed_during_a_statement_fails_that_one_only(sandbox: Sandbox, number: int) -> None:
    first = pid_of(sandbox)
    threading.Timer(0.2, os.kill, (first, number)).start()
    result = sandbox.run(ENDLESS)
    assert (result.failure, result.rows) == ("worker_died", ())
    assert not psutil.pid_exists(first)
    assert sandbox.run(COUNT).rows == ((1000,),)
    assert sandbox.pid != first


@pytest.mark.parametrize("value", ["small", "larger than a pipe holds " * 20_000])
def test_a_worker_that_hangs_is_a_timeout(database: Path, value: str) -> None:
    with open_sandbox(database, Limits(wall_seconds=5)) as sandbox:
        object.__setattr__(sandbox, "_limits", Limits(wall_seconds=0.3))  # starting may take longer
        first = pid_of(sandbox)
        os.kill(first, signal.SIGSTOP)
        result = sandbox.run("SELECT :value", {"value": value})
        assert (result.failure, result.detail) == ("timeout", "no answer within 0.3 seconds")
        assert not psutil.pid_exists(first)
        object.__setattr__(sandbox, "_limits", Limits())
        assert sandbox.run(COUNT).rows == ((1000,),)


def test_a_worker_that_hangs_can_be_closed(database: Path) -> None:
    with open_sandbox(database) as sandbox:
        pid = pid_of(sandbox)
        os.kill(pid, signal.SIGSTOP)
    assert not psutil.pid_exists(pid)


LIES = {
    "garbage": "b'garbage ' * 9",
    "too long": "struct.pack('>cI', b'R', 2**32 - 1)",
    "no JSON": "f(b'R', b'[[1]')",
    "deep JSON": "f(b'R', b'[' * 100000)",
    "no UTF-8": "f(b'R', b'[[\"\\xff\"]]')",
    "huge number": "f(b'R', b'[[' + b'9' * 100000 + b']]') + END",
    "unknown kind": "f(b'Z', b'[]') + END",
    "no list": "f(b'R', b'{}') + END",
    "no rows": "f(b'R', b'[]') * 9 + END",
    "rows of nothing": "f(b'R', b'[1]') + END",
    "list in a cell": "f(b'R', b'[[[1]]]') + END",
    "truth in a cell": "f(b'R', b'[[true]]') + END",
    "object in a cell": 'f(b\'R\', b\'[[{"x":"00","y":1}]]\') + END',
    "odd digits": "f(b'R', b'[[{\"x\":\"0\"}]]') + END",
    "other width": "f(b'R', b'[[1,2]]') + END",
    "too many rows": "f(b'R', b'[[1]]') * 12 + END",
    "too many bytes": "f(b'R', b'[[\"' + b'a' * 900000 + b'\"]]') * 4 + END",
    "two restarts": "f(b'D', b'null') * 2 + END",
    "unknown failure": 'f(b\'E\', b\'{"columns":[],"failure":"x","detail":""}\')',
    "names of columns": 'f(b\'E\', b\'{"columns":[1],"failure":null,"detail":""}\')',
    "no end": "f(b'E', b'null')",
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_worker_that_lies_is_replaced(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, struct, time\n"
        "f = lambda kind, data: struct.pack('>cI', kind, len(data)) + data\n"
        'END = f(b\'E\', b\'{"columns":["a"],"failure":null,"detail":""}\')\n'
        "os.read(0, 100000); os.write(1, f(b'H', b'null')); os.read(0, 100000)\n"
        f"data = {lie}\n"
        "while data: data = data[os.write(1, data):]\n"
        "time.sleep(600)"
    )
    monkeypatch.setattr(module, "_WORKER", script)
    with open_sandbox(database, Limits(rows=10, result_bytes=1_000_000)) as sandbox:
        pid = pid_of(sandbox)
        result = sandbox.run(COUNT)
        assert (result.failure, result.rows, result.columns) == ("worker_died", (), ())
        assert not psutil.pid_exists(pid)
        monkeypatch.undo()
        assert sandbox.run(COUNT).rows == ((1000,),)


def test_several_sandboxes_in_threads(database: Path) -> None:
    def count(number: int) -> list[object]:
        with open_sandbox(database) as sandbox:
            return [sandbox.run("SELECT count(*) + :n FROM t", {"n": number + i}).rows[0][0] for i in range(50)]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(count, range(4))) == [[1000 + number + i for i in range(50)] for number in range(4)]


# Databases.


def test_a_database_deleted_while_open_is_read_until_the_worker_ends(sandbox: Sandbox, database: Path) -> None:
    kept = database.read_bytes()
    database.unlink()
    assert sandbox.run(COUNT).rows == ((1000,),)
    os.kill(pid_of(sandbox), signal.SIGKILL)
    with pytest.raises(SqloraError, match="no such file"):
        [sandbox.run(COUNT) for _ in range(2)]
    assert beside(database) == []
    database.write_bytes(kept)
    assert sandbox.run(COUNT).rows == ((1000,),)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "no such file"),
        (b"", "an empty file"),
        (b"id,name\n1,Ann\n" * 50, "a file of another kind"),
        (b"SQLite format 3\0", "file is not a database"),
        (b"SQLite format 3\0" + b"\xff" * 5_000, "a write-ahead log|file is not a database"),
    ],
)
def test_what_is_no_database(tmp_path: Path, content: bytes | None, found: str) -> None:
    path = tmp_path / "user.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SqloraError, match=found), open_sandbox(path):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["user.db"] * (content is not None)


def test_a_folder_and_a_pipe_are_no_database(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(SqloraError, match="no regular file"), open_sandbox(path):
            pass


def test_a_truncated_database(database: Path) -> None:
    os.truncate(database, database.stat().st_size - 4096)
    with pytest.raises(SqloraError, match="malformed"), open_sandbox(database):
        pass
    assert beside(database) == ["user.db"]


def test_a_corrupt_page_fails_what_reads_it(database: Path) -> None:
    change(database, "CREATE TABLE u (a)", "INSERT INTO u VALUES (5)")
    content = bytearray(database.read_bytes())
    content[4096 * 2 : 4096 * 3] = b"\xa5" * 4096  # a leaf of t
    database.write_bytes(content)
    with open_sandbox(database) as sandbox:
        result = sandbox.run("SELECT sum(length(b)) FROM t")
        assert (result.failure, result.detail) == ("sql_error", "database disk image is malformed")
        assert sandbox.run("SELECT a FROM u").rows == ((5,),)


def test_a_schema_that_is_nonsense(database: Path) -> None:
    change(database, "PRAGMA writable_schema = 1", "UPDATE sqlite_schema SET sql = 'CREATE TABLE t (('")
    with pytest.raises(SqloraError, match="malformed database schema"), open_sandbox(database):
        pass


def test_a_write_ahead_log(database: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("INSERT INTO t VALUES (1, 2)")
        files = beside(database)
        assert files == ["user.db", "user.db-shm", "user.db-wal"]
        copies = {}
        for kept in (("",), ("", "-wal"), ("", "-wal", "-shm")):
            copies[kept] = tmp_path / str(len(kept)) / database.name
            copies[kept].parent.mkdir()
            for suffix in kept:
                shutil.copy(f"{database}{suffix}", f"{copies[kept]}{suffix}")
        # Its writer is at work: what is committed is seen, what is not is not.
        with open_sandbox(database) as sandbox:
            assert sandbox.run(COUNT).rows == ((1001,),)
            writer.execute("BEGIN")
            writer.execute("INSERT INTO t VALUES (3, 4)")
            assert sandbox.run(COUNT).rows == ((1001,),)
            writer.execute("COMMIT")
            assert sandbox.run(COUNT).rows == ((1002,),)
        assert beside(database) == files
    # Its writer has closed it.
    assert beside(database) == ["user.db"]
    assert counted(database) == 1002
    # Its writer was killed.
    assert counted(copies[("", "-wal", "-shm")]) == 1001
    assert counted(copies[("",)]) == 1000
    with pytest.raises(SqloraError, match="write-ahead log with changes"):
        counted(copies[("", "-wal")])
    # Its writer was killed before it wrote anything.
    path = Path(f"{copies[('', '-wal')]}-wal")
    path.write_bytes(b"")
    assert counted(copies[("", "-wal")]) == 1000


def counted(database: Path) -> object:
    """The rows of t, after checking that reading them left nothing and changed nothing."""
    before = {file.name: file.read_bytes() for file in database.parent.iterdir() if not file.name.endswith("-shm")}
    names = beside(database)
    try:
        with open_sandbox(database) as sandbox:
            return sandbox.run(COUNT).rows[0][0]
    finally:
        assert beside(database) == names
        for name, content in before.items():
            assert (database.parent / name).read_bytes() == content


def test_a_transaction_that_was_never_finished(database: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as writer:
        writer.execute("PRAGMA cache_size = 1")
        writer.execute("BEGIN")
        writer.execute("UPDATE t SET b = b || hex(zeroblob(100))")
        assert beside(database) == ["user.db", "user.db-journal"]
        (tmp_path / "killed").mkdir()
        for name in beside(database):
            shutil.copy(database.with_name(name), tmp_path / "killed" / name)
    with pytest.raises(SqloraError, match="a transaction that was never finished"):
        counted(tmp_path / "killed" / database.name)


def test_a_locked_database_is_an_error(database: Path) -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(SqloraError, match="database is locked"), open_sandbox(database):
            pass


def test_the_host_s_own_locks_stay(database: Path) -> None:
    other = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')"
    with closing(sqlite3.connect(database, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        with open_sandbox(database) as sandbox:
            assert sandbox.run(COUNT).rows == ((1000,),)
            command = [sys.executable, "-c", other, str(database)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert "database is locked" in done.stderr


# Hostile schemas.


@pytest.mark.parametrize(
    ("schema", "sql", "failure"),
    [
        ("CREATE VIEW v AS SELECT load_extension('/tmp/x.so')", "SELECT * FROM v", "refused"),
        ("CREATE VIEW v AS SELECT hex(zeroblob(400000000))", "SELECT * FROM v", "refused"),
        ("CREATE VIEW v AS SELECT * FROM sqlite_master", "SELECT * FROM v", "refused"),
        ("CREATE VIEW v AS SELECT * FROM pragma_database_list", "SELECT * FROM v", "wrong_table"),
        (
            "CREATE VIEW v AS WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x FROM c) SELECT * FROM c",
            "SELECT * FROM v",
            "refused",
        ),
        ("CREATE VIEW v AS SELECT count(*) FROM t, t AS b, t AS c, t AS d", "SELECT * FROM v", "timeout"),
        ("CREATE VIEW v AS SELECT a FROM t", "SELECT no_such FROM v", "unknown_column"),
        ("CREATE VIEW v AS SELECT a FROM gone", "SELECT * FROM v", "wrong_table"),
        ("CREATE VIRTUAL TABLE v USING fts5(x)", "SELECT * FROM v", "wrong_table"),
        ("CREATE VIRTUAL TABLE v USING rtree(i, a, b)", "SELECT count(*) FROM v", "wrong_table"),
        ("CREATE TABLE v (a, b AS (hex(zeroblob(a))))", "SELECT b FROM v", "too_large"),
        ("CREATE TRIGGER v AFTER DELETE ON t BEGIN SELECT load_extension('x'); END", "DELETE FROM t", "refused"),
        ("CREATE VIEW v AS SELECT 1 AS a", "DELETE FROM v", "refused"),
    ],
)
def test_what_a_schema_can_hide(database: Path, schema: str, sql: str, failure: str) -> None:
    try:
        change(database, schema)
        if "CREATE TABLE" in schema:
            change(database, "INSERT INTO v (a) VALUES (1000000)")
    except sqlite3.OperationalError as error:
        pytest.skip(f"this Python's SQLite cannot make it: {error}")
    with open_sandbox(database, Limits(seconds=0.2)) as sandbox:
        result = sandbox.run(sql)
        assert (result.failure, result.rows) == (failure, ()), result.detail
        assert sandbox.run(COUNT).rows == ((1000,),)


@pytest.mark.parametrize("join", ["SELECT x.a FROM {} AS x, {} AS y", "SELECT a FROM {} UNION ALL SELECT a FROM {}"])
def test_views_that_double_forty_times(database: Path, join: str) -> None:
    names = ["t", *(f"v{i}" for i in range(40))]
    change(database, *(f"CREATE VIEW {new} AS {join.format(old, old)}" for old, new in pairwise(names)))
    with open_sandbox(database) as sandbox:
        assert sandbox.run("SELECT count(*) FROM v39").failure in ("too_large", "timeout", "refused")
        assert sandbox.run(COUNT).rows == ((1000,),)


def test_a_table_of_2000_columns(database: Path) -> None:
    names = [f"a_rather_long_name_of_a_column_{i}" for i in range(2000)]
    change(database, f"CREATE TABLE w ({' REAL, '.join(names)} REAL)", "INSERT INTO w DEFAULT VALUES")
    with open_sandbox(database, Limits(sql_length=1_000)) as sandbox:
        result = sandbox.run("SELECT * FROM w")
        assert result.columns == tuple(names)
        assert result.rows == ((None,) * 2000,)
        assert sandbox.run(f"SELECT max({names[1999]}) FROM w WHERE {names[0]} IS NULL").rows == ((None,),)


def test_what_another_program_adds_is_seen(sandbox: Sandbox, database: Path) -> None:
    assert sandbox.run("SELECT * FROM later").failure == "wrong_table"
    change(database, "CREATE TABLE later (x)", "INSERT INTO later VALUES (1)")
    assert sandbox.run("SELECT * FROM later").rows == ((1,),)
