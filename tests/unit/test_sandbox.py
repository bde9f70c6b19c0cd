"""What a statement that is allowed to run gives, and where the limits lie."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sqlora.errors import SqloraError
from sqlora.sql import sandbox as module
from sqlora.sql.sandbox import Limits, Sandbox, open_sandbox

CELLS = (None, 0, 2**63 - 1, -(2**63), 0.1, -2.5e300, math.inf, -math.inf, "", "naïve 😀\n\0\x7f", b"", b"\x00\xff")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "user's 100%?#é.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE cells (number INTEGER PRIMARY KEY, cell)")
    connection.executemany("INSERT INTO cells VALUES (?, ?)", enumerate(CELLS))
    connection.execute('CREATE TABLE "odd name" ("Some column", "c,d" REAL, "e""f" TEXT)')
    connection.executemany('INSERT INTO "odd name" VALUES (?, ?, ?)', [(5, "7", "O'Hara"), (None, "x", "Ä")])
    connection.execute("CREATE TABLE broken (a TEXT, b BLOB)")
    connection.executemany(
        "INSERT INTO broken VALUES (CAST(? AS TEXT), ?)", [(b"1a\xffb", b"t"), (b"2ok", b"b\xff"), (b"3\xc3", None)]
    )
    connection.execute("CREATE TABLE many (i INTEGER)")
    connection.executemany("INSERT INTO many VALUES (?)", ((i,) for i in range(50_000)))
    connection.execute("CREATE VIEW large AS SELECT i FROM many WHERE i >= 49998")
    connection.commit()
    connection.close()
    return path


@pytest.fixture(scope="module")
def sandbox(database: Path) -> Iterator[Sandbox]:
    with open_sandbox(database) as sandbox:
        yield sandbox


# Results.


def test_every_kind_of_cell_arrives_as_it_is(sandbox: Sandbox) -> None:
    result = sandbox.run("SELECT cell FROM cells ORDER BY number")
    assert [repr(cell) for (cell,) in result.rows] == [repr(cell) for cell in CELLS]
    assert (result.columns, result.failure, result.detail) == (("cell",), None, "")


def test_columns_have_their_names_even_without_rows(sandbox: Sandbox) -> None:
    result = sandbox.run('SELECT "Some column", "e""f" AS x, 1 AS x FROM "odd name" WHERE 0')
    assert (result.columns, result.rows, result.failure) == (("Some column", "x", "x"), (), None)


def test_texts_that_are_no_utf8_have_replacement_characters(sandbox: Sandbox) -> None:
    result = sandbox.run("SELECT a, b, 5 AS n, 1.5 FROM broken ORDER BY a DESC; -- all\n ;")
    assert result.columns == ("a", "b", "n", "1.5")
    assert result.rows == (("3\ufffd", None, 5, 1.5), ("2ok", b"b\xff", 5, 1.5), ("1a\ufffdb", b"t", 5, 1.5))
    bound = sandbox.run("SELECT a FROM broken WHERE a > :a", {"a": "2z"})
    assert bound.rows == (("3\ufffd",),)


def test_broken_texts_after_many_rows_do_not_repeat_them(sandbox: Sandbox) -> None:
    result = sandbox.run("SELECT i FROM many UNION ALL SELECT a FROM broken")
    assert result.rows[:50_000] == tuple((i,) for i in range(50_000))
    assert [cell for (cell,) in result.rows[50_000:]] == ["1a\ufffdb", "2ok", "3\ufffd"]


def test_arithmetic_is_sqlite_s(sandbox: Sandbox) -> None:
    assert sandbox.run("SELECT 7 / 2, 7 / 2.0, '10' + 5, 'a' = 'A', 'é' LIKE 'É'").rows == ((3, 3.5, 15, 0, 0),)


def test_views_can_be_read(sandbox: Sandbox) -> None:
    assert sandbox.run("SELECT i FROM large").rows == ((49_998,), (49_999,))


def test_rows_that_came_before_a_failure_are_dropped(sandbox: Sandbox) -> None:
    result = sandbox.run("SELECT abs(i) FROM many UNION ALL SELECT abs(-9223372036854775807 - 1)")
    assert (result.failure, result.rows, result.columns) == ("sql_error", (), ())
    assert result.detail == "integer overflow"


def test_details_are_one_printable_line(sandbox: Sandbox) -> None:
    result = sandbox.run('SELECT "a\n\x1b[31m\u202eb"')
    assert result.failure == "unknown_column"
    assert result.detail.startswith("no such column: ")
    assert result.detail.isprintable()
    assert len(sandbox.run(f'SELECT "{"x" * 5_000}"').detail) <= 300


# Values.


@pytest.mark.parametrize("value", ["", "O'Hara\"; DROP TABLE t; --", "a\0b 😀", 0, 2**63 - 1, -(2**63), 0.1, -math.inf])
def test_values_are_bound(sandbox: Sandbox, value: Any) -> None:
    assert sandbox.run("SELECT :col3, :col3 = :b", {"col3": value, "b": value, "unused": 5}).rows == ((value, 1),)


def test_odd_values_that_are_bound(sandbox: Sandbox) -> None:
    result = sandbox.run("SELECT :yes, :nan, @c, $d", {"yes": True, "nan": math.nan, "c": 1, "d": 2})
    assert result.rows == ((1, None, 1, 2),)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**100, "a\ud800", b"a", None, [1]])
def test_values_that_do_not_fit_are_errors(sandbox: Sandbox, value: Any) -> None:
    assert sandbox.run("SELECT :a", {"a": value}).failure == "sql_error"


def test_a_missing_value_is_an_error(sandbox: Sandbox) -> None:
    assert sandbox.run("SELECT :a, :b", {"a": 1}).detail == "no value for the parameter 'b'"
    assert sandbox.run("SELECT ?", {"a": 1}).failure == "sql_error"


# Limits: each is met exactly, then passed by one.


@pytest.mark.parametrize(
    ("limits", "fits", "does_not", "failure"),
    [
        (Limits(rows=3), "SELECT i FROM many LIMIT 3", "SELECT i FROM many LIMIT 4", "too_many_rows"),
        (Limits(columns=3), "SELECT 1, 2, 3", "SELECT 1, 2, 3, 4", "refused"),
        (Limits(sql_length=11), "SELECT 'é'", "SELECT 'éa'", "refused"),
        (Limits(value_bytes=200), f"SELECT '{'a' * 200}' AS x", f"SELECT '{'a' * 200}' || 'a' AS x", "too_large"),
        (Limits(result_bytes=40), f"SELECT '{'a' * 35}'", f"SELECT '{'a' * 36}'", "too_large"),
        (Limits(result_bytes=100), "SELECT i FROM many LIMIT 22", "SELECT i FROM many LIMIT 23", "too_large"),
        (
            Limits(memory_bytes=1_000_000),
            "SELECT count(DISTINCT i) FROM many WHERE i < 1000",
            "SELECT count(DISTINCT i * 1e9 || '') FROM many",
            "too_large",
        ),
        (
            Limits(seconds=0.1),
            "SELECT count(*) FROM many",
            "SELECT count(*) FROM many AS a, many AS b WHERE a.i < b.i",
            "timeout",
        ),
    ],
)
def test_limits(database: Path, limits: Limits, fits: str, does_not: str, failure: str) -> None:
    with open_sandbox(database, limits) as sandbox:
        assert sandbox.run(fits).failure is None
        result = sandbox.run(does_not)
        assert (result.failure, result.rows) == (failure, ()), result.detail
        assert sandbox.run(fits).failure is None


def test_values_have_the_limit_of_values(database: Path) -> None:
    with open_sandbox(database, Limits(value_bytes=200)) as sandbox:
        assert sandbox.run("SELECT length(:a)", {"a": "é" * 100}).rows == ((100,),)
        assert sandbox.run("SELECT length(:a)", {"a": "é" * 100 + "a"}).failure == "too_large"


def test_a_worker_that_keeps_time_itself_lives_on(database: Path) -> None:
    with open_sandbox(database, Limits(seconds=0.1)) as sandbox:
        pid = sandbox.pid
        result = sandbox.run("SELECT count(*) FROM many AS a, many AS b")
        assert (result.failure, result.detail) == ("timeout", "too much computing time")
        assert sandbox.run("SELECT 1").rows == ((1,),)
        assert sandbox.pid == pid


def test_time_is_computing_time_not_the_clock_s(database: Path) -> None:
    with open_sandbox(database, Limits(seconds=0.2)) as sandbox:
        process = psutil.Process(sandbox.pid)
        process.suspend()
        threading.Timer(0.5, process.resume).start()
        started = time.monotonic()
        assert sandbox.run("SELECT sum(i) FROM many").rows == ((1_249_975_000,),)
        assert time.monotonic() - started > 0.4


# The process.


def test_the_worker_is_gone_afterwards(database: Path) -> None:
    with open_sandbox(database) as sandbox:
        pid = sandbox.pid
        assert pid is not None
        assert psutil.pid_exists(pid)
        assert os.getsid(pid) == pid  # Ctrl-C in a terminal does not reach it
    assert not psutil.pid_exists(pid)  # a zombie would count
    assert sandbox.pid is None


def test_the_worker_is_gone_after_an_exception(database: Path) -> None:
    pids = []

    def interrupted() -> None:
        with open_sandbox(database) as sandbox:
            pids.append(sandbox.pid)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not psutil.pid_exists(pids[0])


def test_after_an_interrupted_statement_the_next_gets_its_own_answer(database: Path) -> None:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with open_sandbox(database, Limits(seconds=10)) as sandbox:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            with pytest.raises(KeyboardInterrupt):
                sandbox.run("SELECT count(*) FROM many AS a, many AS b")
            assert sandbox.run("SELECT 'mine'").rows == (("mine",),)
    finally:
        signal.signal(signal.SIGINT, handler)


def test_the_worker_ends_with_its_host(database: Path) -> None:
    script = (
        "import sys, time, pathlib; from sqlora.sql.sandbox import open_sandbox\n"
        "with open_sandbox(pathlib.Path(sys.argv[1])) as sandbox: print(sandbox.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(database)], stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        worker = psutil.Process(int(host.stdout.readline()))
        host.kill()
    psutil.wait_procs([worker], timeout=20)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE  # without an init nobody reaps it


def test_several_sandboxes_at_once(database: Path) -> None:
    with open_sandbox(database) as first, open_sandbox(database) as second:
        assert first.pid != second.pid
        first.close()  # the second one must not keep the first one's pipes open, nor the other way round
        assert second.run("SELECT 2").rows == ((2,),)
        assert first.run("SELECT 1").rows == ((1,),)


def test_the_environment_does_not_matter(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPROF])
    try:
        with open_sandbox(database, Limits(seconds=0.1)) as sandbox:
            sql = "SELECT instr(:a, substr(:a, 1, 300000) || 'b')"
            result = sandbox.run(sql, {"a": "a" * 600_000})
            assert result.failure == "timeout", result.detail
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    assert [path.name for path in tmp_path.iterdir()] == ["json.py"]


def test_a_relative_path_stays_where_it_was(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(database.parent)
    with open_sandbox(Path(database.name)) as sandbox:
        monkeypatch.chdir(tmp_path)
        sandbox.close()
        assert sandbox.run("SELECT 1").rows == ((1,),)


def test_a_symbolic_link_will_do(database: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(database)
    with open_sandbox(tmp_path / "link") as sandbox:
        assert sandbox.run("SELECT count(*) FROM many").rows == ((50_000,),)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_a_worker_that_never_starts_is_an_error(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(f"open({str(tmp_path / 'starts')!r}, 'a').write('.')")
    monkeypatch.setattr(module, "_WORKER", script)
    with pytest.raises(SqloraError, match="after 3 attempts"), open_sandbox(database):
        pass
    assert (tmp_path / "starts").read_text() == "..."


def test_a_python_that_is_not_there_is_an_error(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(SqloraError, match="No such file"), open_sandbox(database):
        pass
