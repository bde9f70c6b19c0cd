"""SIGKILL in the middle of a model's download and extraction, at seeded random moments; then the next run."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tars import member, write_members
from web_server import WebServer

ROOT = Path(__file__).parents[2]
KILLS = 20
OUT = Path("artifacts/source-model")
PARTIAL = OUT.with_name(".partial-source-model")
# Imports once and forks for every run: a start of its own would cost a second each.
NURSERY = """
import os, sys, traceback
from pathlib import Path
import dvc.repo
from sqlora.fetch.model import fetch_model
from sqlora.publish import publish_folder
for line in sys.stdin:
    url, checksum = line.split()
    child = os.fork()
    if not child:
        status = 1
        try:
            with publish_folder(Path("artifacts/source-model")) as folder:
                fetch_model(url, checksum=checksum, demo=Path, folder=folder)
            status = 0
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    print(child, flush=True)
    sys.stdin.readline()  # until then a child that has ended stays a zombie, so that nothing else has its number
    print(os.waitpid(child, 0)[1], flush=True)
"""
MEMBERS = {
    "consolidated.00.pth": random.Random(0).randbytes(1_000_000),
    "consolidated.01.pth": random.Random(1).randbytes(600_000),
    "params.json": b"{}",
    "tokenizer.model": b"pieces" * 1000,
}


class Nursery:
    """Runs the fetch of one source again and again, each time in a process of its own."""

    def __init__(self, url: str, checksum: str) -> None:
        self.line = f"{url} {checksum}\n"
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "NO_PROXY": "*", "no_proxy": "*"}
        command = [sys.executable, "-c", NURSERY]
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def start(self) -> int:
        return self._ask(self.line)

    def kill(self, child: int) -> bool:
        """Whether the kill came before the end."""
        os.kill(child, signal.SIGKILL)
        return self._ask("\n") == signal.SIGKILL

    def finish(self) -> None:
        self.start()
        assert self._ask("\n") == 0

    def _ask(self, line: str) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC repository."""
    monkeypatch.chdir(tmp_path)
    dvc = Path(sys.executable).with_name("dvc")
    subprocess.run([dvc, "init", "-q", "--no-scm"], env=os.environ | {"DVC_NO_ANALYTICS": "1"}, check=True)
    return tmp_path


@pytest.fixture
def server() -> Iterator[WebServer]:
    server = WebServer()
    yield server
    server.close()


@pytest.fixture(params=[0])
def body(here: Path, request: pytest.FixtureRequest) -> bytes:
    """A tar with as many bytes of something else behind the model; bzip2 is slow, so that there is time to kill."""
    members = [member(f"model/{name}", content) for name, content in MEMBERS.items()]
    rest = member("rest", random.Random(3).randbytes(request.param))
    return write_members(here / "x.tar", *members, rest, mode="w:bz2").read_bytes()


@pytest.fixture
def nursery(server: WebServer, body: bytes) -> Iterator[Nursery]:
    nursery = Nursery(server.serve("/x.tar", body), "sha256:" + hashlib.sha256(body).hexdigest())
    yield nursery
    nursery.close()


def assert_nothing_partial() -> None:
    """Where anybody looks, there is all of it or nothing."""
    assert not OUT.exists() or contents() == MEMBERS
    for path in Path(".dvc/cache/files/md5").glob("*/*"):
        assert hashlib.md5(path.read_bytes()).hexdigest() == path.parent.name + path.name


def contents() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in OUT.iterdir()}


def downloads() -> list[str]:
    return [path.name for path in Path(".sqlora/downloads").rglob("*") if path.is_file() and path.name != ".lock"]


@pytest.mark.parametrize("body", [3_000_000], indirect=True)
def test_download_killed_twenty_times(nursery: Nursery, server: WebServer, body: bytes) -> None:
    rng = random.Random(1)
    page = server.pages["/x.tar"]
    page.slow = 0.05  # 3.5 seconds in all
    for _ in range(KILLS):
        asked = len(server.requests)
        child = nursery.start()
        wait_for(lambda asked=asked: len(server.requests) > asked)
        time.sleep(rng.uniform(0, 0.12))
        assert nursery.kill(child)
        assert not OUT.exists()
        assert_nothing_partial()
    assert set(downloads()) == {"x.tar.part", "x.tar.part.json"}
    kept = next(Path(".sqlora/downloads").rglob("*.part")).stat().st_size
    page.slow = 0
    nursery.finish()
    assert contents() == MEMBERS
    assert (server.requests[-1].status, server.requests[-1].sent) == (206, len(body) - kept)
    assert kept > len(body) / 8
    assert downloads() == []  # the members are in DVC's cache


def test_extraction_killed_twenty_times(nursery: Nursery, server: WebServer, body: bytes, here: Path) -> None:
    nursery.finish()
    (key,) = (path.stem for path in Path(".sqlora/members").glob("*.json"))
    fresh = here / "fresh"
    (fresh / key).mkdir(parents=True)
    (fresh / key / "x.tar").write_bytes(body)
    server.requests.clear()
    as_downloaded(fresh)
    started = time.monotonic()
    nursery.finish()
    duration = time.monotonic() - started

    rng = random.Random(2)
    extracting = later = attempts = 0
    while extracting + later < KILLS:
        attempts += 1
        assert attempts < 4 * KILLS
        as_downloaded(fresh)
        child = nursery.start()
        if attempts % 2:
            wait_for(lambda: PARTIAL.exists() or OUT.exists())
            time.sleep(rng.uniform(0, duration * 0.7))
        else:  # all is extracted; what follows is short: DVC's cache, the note, the end of the tar, the publication
            wait_for(lambda: (PARTIAL / "tokenizer.model").exists() or OUT.exists())
            time.sleep(rng.uniform(0, duration / 5))
        if nursery.kill(child):
            extracting, later = (extracting + 1, later) if downloads() else (extracting, later + 1)
        assert_nothing_partial()
        nursery.finish()
        assert contents() == MEMBERS
        assert downloads() == []
        assert not PARTIAL.exists()
    assert extracting >= KILLS / 4
    assert server.requests == []  # whatever the moment, nothing was downloaded again


def as_downloaded(fresh: Path) -> None:
    """Go back to the moment when the tar is here and nothing else."""
    for folder in (".sqlora", "artifacts", ".dvc/cache"):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(fresh, ".sqlora/downloads")


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError("it never came")
