"""No statement changes anything, takes much, or spoils what comes after it."""

from __future__ import annotations

import hashlib
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hostile_statements import ANSWERED, FAILING

from sqlora.sql.sandbox import Limits, Result, Sandbox, open_sandbox

LIMITS = Limits(seconds=0.3)
CPU_SECONDS = 2.0
WALL_SECONDS = 20.0  # a machine that is starved of CPU time is not at fault
RESIDENT_BYTES = 200e6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    connection = sqlite3.connect(folder / "user.db")
    connection.execute("CREATE TABLE t (a TEXT, b REAL, c BLOB)")
    connection.executemany("INSERT INTO t VALUES (?, ?, ?)", ((f"x{i}", i / 2, bytes([i % 256])) for i in range(1000)))
    connection.execute("CREATE TABLE long (x TEXT)")
    connection.execute("INSERT INTO long VALUES (?)", ["a" * 600_000])
    connection.commit()
    connection.close()
    for name in ("temporary", "current"):
        (folder / name).mkdir()
    return folder


@pytest.fixture(scope="module")
def sandbox(folder: Path) -> Iterator[Sandbox]:
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("SQLITE_TMPDIR", "TMPDIR"):
            patch.setenv(variable, str(folder / "temporary"))
        patch.chdir(folder / "current")
        with open_sandbox(folder / "user.db", LIMITS) as sandbox:
            yield sandbox


def test_the_list_is_as_long_as_it_should_be() -> None:
    names = [name for name, *_ in FAILING]
    assert len(set(names)) == len(names) >= 60


@pytest.mark.parametrize(("sql", "failure"), [case[1:] for case in FAILING], ids=[case[0] for case in FAILING])
def test_hostile_statement(sandbox: Sandbox, folder: Path, sql: str, failure: str) -> None:
    result = harmless(sandbox, folder, sql.replace("{folder}", str(folder)))
    assert (result.failure, result.rows, result.columns) == (failure, (), ()), result.detail
    assert result.detail
    assert result.detail.isprintable()


@pytest.mark.parametrize(("sql", "rows"), [case[1:] for case in ANSWERED], ids=[case[0] for case in ANSWERED])
def test_odd_statement(sandbox: Sandbox, folder: Path, sql: str, rows: list[Any]) -> None:
    result = harmless(sandbox, folder, sql)
    assert (result.failure, list(result.rows)) == (None, rows), result.detail


def test_the_worker_holds_no_file_but_the_database(sandbox: Sandbox) -> None:
    assert sandbox.run("SELECT 1").rows == ((1,),)
    process = psutil.Process(sandbox.pid)
    assert process.num_fds() == 4  # the two pipes, /dev/null, the database
    assert process.cwd() == "/"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process's limits")
def test_the_worker_can_open_and_write_no_file(sandbox: Sandbox) -> None:
    process = psutil.Process(sandbox.pid)
    for limit in (psutil.RLIMIT_NOFILE, psutil.RLIMIT_FSIZE, psutil.RLIMIT_CORE):
        assert process.rlimit(limit) == (0, 0)
    assert 0 < process.rlimit(psutil.RLIMIT_AS)[1] < 400e6


def harmless(sandbox: Sandbox, folder: Path, sql: str) -> Result:
    """The statement's result, after checking that it took little and left nothing."""
    assert sandbox.run("SELECT count(*) FROM t").rows == ((1000,),)
    before = state(folder)
    with Watch(sandbox.pid) as watch:
        started = time.monotonic()
        result = sandbox.run(sql)
        wall = time.monotonic() - started
    assert wall < WALL_SECONDS
    assert watch.cpu_seconds < CPU_SECONDS
    assert watch.resident < RESIDENT_BYTES
    assert state(folder) == before
    assert sandbox.run("SELECT count(*) FROM t").rows == ((1000,),)
    return result


def state(folder: Path) -> tuple[Any, ...]:
    return (
        sorted(folder.rglob("*")),
        sorted(Path("/").iterdir()),
        hashlib.sha256((folder / "user.db").read_bytes()).hexdigest(),
    )


class Watch:
    """What a process takes while the block runs; it may end meanwhile."""

    def __init__(self, pid: int | None) -> None:
        self.process = psutil.Process(pid)
        self.resident = 0.0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.sample_often)
        self.started = self.cpu()
        self.latest = self.started

    @property
    def cpu_seconds(self) -> float:
        return self.latest - self.started

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def sample_often(self) -> None:
        last = False
        while not last:
            last = self.done.wait(0.005)
            try:
                self.latest = self.cpu()
                self.resident = max(self.resident, self.process.memory_info().rss, self.peak())
            except (psutil.Error, OSError):
                return

    def cpu(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system

    def peak(self) -> float:
        """The process's own record, which misses nothing between two samples; Linux only."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        except FileNotFoundError:
            return 0
        return float(status.partition("VmHWM:")[2].split()[0]) * 1024 if "VmHWM:" in status else 0
