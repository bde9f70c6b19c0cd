"""Publishes outputs whole: written beside the target, renamed when complete, never seen half-written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def publish_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target` that takes its place when the block ends without an exception."""
    with _beside(target) as partial:
        partial.mkdir()
        yield partial


@contextmanager
def publish_file(target: Path) -> Iterator[Path]:
    """Yield a path beside `target` to be written; the file takes `target`'s place when the block ends well."""
    with _beside(target) as partial:
        yield partial


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept because libraries choose a format by it (numpy, mlx).
    partial = target.with_name(f".partial-{target.name}")
    _remove(partial)  # what a killed run left
    try:
        yield partial
        _sync(partial)
        old = target.with_name(f".old-{target.name}")
        _remove(old)
        if partial.is_dir() and (target.exists() or target.is_symlink()):
            # A folder cannot take another's place in one step, and deleting one takes time; moving it away does not.
            os.replace(target, old)
        os.replace(partial, target)
        _remove(old)
    except BaseException:
        _remove(partial)
        raise


def _sync(path: Path) -> None:
    # Without this a power cut after the rename can leave a complete name over incomplete bytes.
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
