"""The folder of all stores of states: its size, who uses what in it, and what is deleted when space is short."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from sqlora.train.interruption import Interrupted

ROOT = Path(".sqlora/states")
QUIET_SECONDS = 1.0
_POLL_SECONDS = 0.005  # ranks of a run come at the same time


def bytes_of(root: Path) -> int:
    """Of all stores below the folder; what goes meanwhile does not count."""
    size = 0
    for folder, _, names in os.walk(root):  # which passes over folders that have gone; Path.rglob may raise
        for name in names:
            with suppress(FileNotFoundError):
                size += Path(folder, name).stat().st_size
    return size


@contextmanager
def held(root: Path, stop: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Hold the lock of all stores below the folder, while this process makes a store its own by a lock-*, or deletes
    files. So whoever deletes sees all users, and none comes meanwhile.

    Another run may copy many gigabytes while it holds it: this waits, and says so.

    Args:
        stop: asked while this waits.

    Raises:
        Interrupted: `stop` said so.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root.with_name(f"{root.name}.lock"))  # beside it: what is in it are stores
    try:
        lock.acquire(timeout=QUIET_SECONDS, poll_interval=_POLL_SECONDS)
    except Timeout:
        print(f"another run makes room in {root}; waiting for its end", flush=True)
        while not lock.is_locked:
            if stop():
                raise Interrupted from None
            with suppress(Timeout):
                lock.acquire(timeout=0.2)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def unused(folder: Path, but: Collection[int] = ()) -> Iterator[None]:
    """Hold a store's locks, except those of some parts.

    Raises:
        Timeout: a process holds one of them.
    """
    mine = {f"lock-{part}" for part in but}
    with ExitStack() as stack:
        for lock in folder.glob("lock-*"):
            if lock.name not in mine:
                stack.enter_context(FileLock(lock, timeout=0))
        yield


def make_room(root: Path, keep: Path, most_bytes: int, stop: Callable[[], bool] = lambda: False) -> list[str]:
    """Delete the least recently used stores until the others and `keep` take at most so much; returns their names.

    A store that another run uses, whose lock it holds, stays.

    Raises:
        Interrupted: `stop` said so while this waited for another run.
    """
    deleted = []
    with held(root, stop):
        stores = [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
        sizes = {path: bytes_of(path) for path in stores}
        for path in sorted(stores, key=_last_use):
            if sum(sizes.values()) <= most_bytes:
                break
            if path == keep:
                continue
            with suppress(Timeout, FileNotFoundError), unused(path):
                shutil.rmtree(path)
                deleted.append(path.name)
            sizes[path] = bytes_of(path)
    return deleted


def _last_use(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:  # somebody has deleted it
        return 0.0
