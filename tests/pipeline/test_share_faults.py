"""What users see when sharing breaks, in DVC's words as docs/guides/sharing.md quotes them, and what mends it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from project import Project
from s3_server import S3Server
from small_pipeline import OBJECTS, make_small_pipeline, set_params
from team import (
    Remote,
    clone,
    commit,
    copy_of,
    fails,
    folder_remote,
    md5_of,
    must,
    object_path,
    s3_remote,
    start,
    wait_until,
)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_small_pipeline(tmp_path_factory.mktemp("small") / "a")


@pytest.fixture
def a(pristine: Project, tmp_path: Path) -> Project:
    return copy_of(pristine, tmp_path / "a")


@pytest.fixture
def folder(a: Project, tmp_path: Path) -> Remote:
    """A remote in a folder, which A's clone knows."""
    remote = folder_remote(tmp_path / "store")
    remote.use(a)
    commit(a, "the remote")
    return remote


@pytest.fixture
def s3(a: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    """The same on S3."""
    server = S3Server()
    remote = s3_remote(server, tmp_path.name, monkeypatch)
    remote.use(a)
    commit(a, "the remote")
    yield remote
    server.close()


def objects_below(folder: Path) -> int:
    return sum(not path.name.startswith(".") for path in folder.glob("files/md5/*/*"))


def kill_midway(project: Project, command: str, target: Callable[[], Path]) -> None:
    """Kill a dvc command when the first objects have arrived in a folder; again in a new one if it was too fast."""
    for _ in range(10):
        place = target()
        process = start(project, "dvc", command, "--jobs", "1")
        wait_until(lambda place=place: objects_below(place) > 0)  # type: ignore[misc]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if objects_below(place) < OBJECTS:
            return
    pytest.fail("the command was too fast to be killed midway")


def test_a_killed_push_to_a_folder_is_completed(a: Project, folder: Remote, tmp_path: Path) -> None:
    places = iter(range(10))

    def another() -> Path:
        place = tmp_path / f"store {next(places)}"
        must(a, "dvc", "remote", "modify", "team", "url", str(place))
        return place

    kill_midway(a, "push", another)
    must(a, "dvc", "push")
    commit(a, "the remote's place")
    b = clone(a, tmp_path / "b")
    must(b, "dvc", "pull")
    assert "0 damaged" in must(a, "python", "-m", "sqlora", "verify", "--remote")
    assert "0 damaged" in must(b, "python", "-m", "sqlora", "verify")


def test_a_killed_pull_from_a_folder_is_completed(a: Project, folder: Remote, tmp_path: Path) -> None:
    must(a, "dvc", "push")
    b = clone(a, tmp_path / "b")
    caches = iter(range(10))

    def another() -> Path:
        place = tmp_path / f"cache {next(caches)}"
        must(b, "dvc", "cache", "dir", "--local", str(place))
        return place

    kill_midway(b, "pull", another)
    must(b, "dvc", "pull")
    assert "0 damaged" in must(b, "python", "-m", "sqlora", "verify")
    assert "up to date" in must(b, "dvc", "status")


def kill_while_held(s3: Remote, method: str, project: Project, command: str) -> None:
    """Start a dvc command, let the server answer fifty requests of a method, and kill the command while it waits."""
    assert s3.server
    s3.server.hold(method, after=50)
    process = start(project, "dvc", command)
    assert s3.server.held.wait(60)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    s3.server.release()


def test_a_push_to_s3_that_stalls_and_is_killed_is_completed(a: Project, s3: Remote, tmp_path: Path) -> None:
    kill_while_held(s3, "PUT", a, "push")
    wait_until(lambda: len(s3.objects()) >= 50)
    assert len(s3.objects()) < OBJECTS
    assert not any(path.endswith(".dir") for path in s3.objects())  # it would stand for files that are not there
    must(a, "dvc", "push")
    assert len(s3.objects()) == OBJECTS
    must(clone(a, tmp_path / "b"), "dvc", "pull")


def test_a_pull_from_s3_that_stalls_and_is_killed_is_completed(a: Project, s3: Remote, tmp_path: Path) -> None:
    must(a, "dvc", "push")
    b = clone(a, tmp_path / "b")
    kill_while_held(s3, "GET", b, "pull")
    assert objects_below(b.folder / ".dvc/cache") < OBJECTS
    must(b, "dvc", "pull")
    assert "0 damaged" in must(b, "python", "-m", "sqlora", "verify")


def test_a_conflicted_lock(a: Project) -> None:
    must(a, "git", "checkout", "--quiet", "-b", "other")
    set_params(a, seed=2)
    must(a, "dvc", "repro", "--quiet")
    commit(a, "seed 2")
    must(a, "git", "checkout", "--quiet", "-")
    set_params(a, seed=3)
    must(a, "dvc", "repro", "--quiet")
    commit(a, "seed 3")
    assert "Merge conflict in dvc.lock" in fails(a, "git", "merge", "other")
    must(a, "git", "checkout", "--theirs", "params.yaml")
    assert "'./dvc.lock' is invalid (possible merge conflicts)." in fails(a, "dvc", "repro")
    # The guide's way: one side's params.yaml, dvc.lock and results, then what they name.
    must(a, "git", "checkout", "--theirs", "dvc.lock")
    must(a, "dvc", "checkout")
    printed = must(a, "dvc", "repro")
    assert "Running stage" not in printed
    commit(a, "merged")
    assert "seed: 2" in (a.folder / "params.yaml").read_text()
    # Parameters of both sides: a stage that never ran with them runs.
    set_params(a, seed=4)
    assert "Running stage 'make'" in must(a, "dvc", "repro")


def test_a_damaged_and_a_lost_lock(a: Project) -> None:
    lock = a.folder / "dvc.lock"
    good = lock.read_text()
    lock.write_text("a: [1, 2]\n")
    assert "'./dvc.lock' validation failed: 2 errors." in fails(a, "dvc", "repro")
    lock.write_text(good[:-40] + "\t: {")
    assert "'./dvc.lock' is invalid" in fails(a, "dvc", "repro")
    must(a, "git", "checkout", "HEAD", "--", "dvc.lock")
    assert "up to date" in must(a, "dvc", "status")
    lock.unlink()
    printed = must(a, "dvc", "repro")
    assert printed.count("is cached - skipping run") == 2
    assert lock.read_text() == good


def test_two_repros_at_once(a: Project) -> None:
    set_params(a, seed=2, wait=True)
    (a.folder / "started").unlink()
    first = start(a, "dvc", "repro")
    wait_until((a.folder / "started").exists)
    printed = fails(a, "dvc", "repro")
    assert re.search(r"failed to reproduce 'make': '\S+/data' is busy, it is being blocked by: \(PID \d+\): ", printed)
    assert "dvc repro" in printed
    (a.folder / "go").touch()
    assert first.wait(60) == 0
    assert "up to date" in must(a, "dvc", "status")


def test_a_killed_repro_blocks_nobody(a: Project) -> None:
    set_params(a, seed=2, wait=True)
    (a.folder / "started").unlink()
    first = start(a, "dvc", "repro")
    wait_until((a.folder / "started").exists)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    (a.folder / "go").touch()
    printed = must(a, "dvc", "repro")
    assert "had been killed. Auto removed it from the lock file." in printed
    assert "Running stage 'make'" in printed


def test_an_object_that_the_remote_has_lost(a: Project, folder: Remote, tmp_path: Path) -> None:
    must(a, "dvc", "push")
    md5 = md5_of(a.folder / "data/7.bin")
    folder.replace(object_path(md5), None)
    b = clone(a, tmp_path / "b")
    printed = fails(b, "dvc", "pull")
    assert f"ERROR: failed to transfer '{md5}' - [Errno 2] No such file or directory" in printed
    assert "ERROR: failed to pull data from the cloud - 2 files failed to download" in printed
    # A's push sends nothing: the folder's listing is there.
    assert "Everything is up to date" in must(a, "dvc", "push")
    told = fails(a, "python", "-m", "sqlora", "verify", "--remote")
    for line in re.findall(r"(rm -f \S+|dvc push \S+)", told):
        must(a, *line.split())
    must(b, "dvc", "pull")
    assert "0 damaged" in must(b, "python", "-m", "sqlora", "verify", "--remote")


@pytest.mark.parametrize("verified", [True, False])
def test_only_a_verified_pull_notices_a_flipped_bit(a: Project, folder: Remote, tmp_path: Path, verified: bool) -> None:
    must(a, "dvc", "push")
    good = (a.folder / "data/7.bin").read_bytes()
    folder.replace(object_path(md5_of(a.folder / "data/7.bin")), good[:-1] + bytes([good[-1] ^ 1]))
    b = clone(a, tmp_path / "b")
    if verified:
        must(b, "dvc", "remote", "modify", "team", "verify", "true")
        printed = fails(b, "dvc", "pull")
        assert "Checkout failed for following targets: data Is your cache up to date?" in printed
        return
    must(b, "dvc", "pull")
    assert "up to date" in must(b, "dvc", "status")
    assert (b.folder / "data/7.bin").read_bytes() != good


def test_an_object_that_is_nowhere(a: Project) -> None:
    path = a.folder / "list.txt"
    (a.folder / ".dvc/cache" / object_path(md5_of(path))).unlink()
    path.unlink()
    printed = fails(a, "dvc", "checkout")
    assert "Checkout failed for following targets: list.txt Is your cache up to date?" in printed
    printed = must(a, "dvc", "repro")
    assert "Running stage 'list'" in printed
    assert "Running stage 'make'" not in printed


@contextmanager
def small_disk(place: Path) -> Iterator[Callable[[], None]]:
    """A file system of 4 MB in a folder's place; what it yields makes it larger."""
    if not sys.platform.startswith("linux") or os.geteuid():
        pytest.skip("only root on Linux may mount a file system")
    place.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if (done := subprocess.run(mount, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield lambda: assert_runs("mount", "-o", "remount,size=60m", str(place))
    finally:
        assert_runs("umount", str(place))


def assert_runs(*command: str) -> None:
    subprocess.run(command, check=True)


def test_a_full_disk_in_a_repro(a: Project) -> None:
    set_params(a, seed=2)
    must(a, "dvc", "cache", "dir", "--local", "small")
    with small_disk(a.folder / "small") as enlarge:
        assert "[Errno 28] No space left on device" in fails(a, "dvc", "repro")
        enlarge()
        assert "Running stage 'make'" in must(a, "dvc", "repro")
        assert "up to date" in must(a, "dvc", "status")
        assert "0 damaged" in must(a, "python", "-m", "sqlora", "verify")


def test_a_full_disk_in_push_and_pull(a: Project, folder: Remote, tmp_path: Path) -> None:
    with small_disk(Path(folder.url)) as enlarge:
        printed = fails(a, "dvc", "push")
        assert "[Errno 28] No space left on device" in printed
        assert re.search(r"ERROR: failed to push data to the cloud - \d+ files failed to upload", printed)
        enlarge()
        must(a, "dvc", "push")
        b = clone(a, tmp_path / "b")
        with small_disk(b.folder / ".dvc/cache") as enlarge_cache:
            printed = fails(b, "dvc", "pull")
            assert re.search(r"ERROR: failed to pull data from the cloud - \d+ files failed to download", printed)
            enlarge_cache()
            must(b, "dvc", "pull")
            assert "0 damaged" in must(b, "python", "-m", "sqlora", "verify", "--remote")


def test_what_share_says(a: Project, tmp_path: Path) -> None:
    assert "found no default remote; expected one to push to. Run `make share REMOTE=" in fails(
        a, "python", "-m", "sqlora", "share"
    )
    must(a, "python", "-m", "sqlora", "share", "../store")
    # Nothing but the two entries of the run cache, which DVC always sends.
    assert "2 files pushed" in must(a, "python", "-m", "sqlora", "share", "../store")
    assert "found the default remote team at" in fails(a, "python", "-m", "sqlora", "share", str(tmp_path / "x"))
    assert "store, verified on a pull" in must(a, "python", "-m", "sqlora", "doctor")
    must(a, "dvc", "remote", "modify", "team", "verify", "false")
    must(a, "python", "-m", "sqlora", "share")  # leaves alone what somebody has chosen
    assert "DVC hashes nothing that it pulls from team" in must(a, "python", "-m", "sqlora", "doctor")
    must(a, "dvc", "remote", "modify", "team", "url", "s3://team/x")
    must(a, "dvc", "remote", "modify", "team", "endpointurl", "http://127.0.0.1:9")
    printed = fails(
        a,
        "env",
        "AWS_MAX_ATTEMPTS=1",
        "AWS_ACCESS_KEY_ID=a",
        "AWS_SECRET_ACCESS_KEY=b",
        "python",
        "-m",
        "sqlora",
        "share",
    )
    assert "expected that the remote takes every file" in printed
