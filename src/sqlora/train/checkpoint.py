"""Checkpoints of a training run: whole or not there, and the last three of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlora.mlx import mx, tree_flatten

import numpy as np

from sqlora.distributed.group import Group
from sqlora.errors import SqloraError
from sqlora.train.interruption import Interrupted

ROOT = Path(".sqlora/train")
KEPT = 3
_MANIFEST = "manifest.json"
_PARTS = ("adapter", "optimizer", "best")
_FILES = {"record.json", *(f"{name}.safetensors" for name in _PARTS)}
Parts = dict[str, dict[str, mx.array]]
"""Of a checkpoint: part -> flat name -> array."""
Entry = tuple[str, str, mx.array]
"""Part, name and array."""
_PIECE = 2**28  # numbers of one transfer, at most: MLX counts an array's with 31 bits


@dataclass(frozen=True)
class Checkpoint:
    """step: how many steps it has seen; adapter, optimizer, best: flat name -> array; record: what else is needed."""

    step: int
    adapter: dict[str, mx.array]
    optimizer: dict[str, mx.array]
    best: dict[str, mx.array]
    record: dict[str, Any]


def fingerprint(inputs: dict[str, Any]) -> str:
    """A name for a run: equal for equal inputs only."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode("utf-8")).hexdigest()[:16]


class Saver:
    """Writes a run's checkpoints into its folder and drops all but the last three.

    Each is written beside, brought to the disk and renamed; the manifest with the files' hashes comes last. All that
    happens while the caller goes on. The end of the `with` statement waits for the last one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._background = ThreadPoolExecutor(max_workers=1)
        self._under_way: Future[None] | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind in (None, Interrupted):
                self.wait()
            else:
                self.finish()
        finally:
            self._background.shutdown()

    def save(self, checkpoint: Checkpoint) -> None:
        """Begin to save; `wait` ends it, as the next save does.

        Raises:
            SqloraError: the one before cannot be written; those before it stay as they are.
        """
        self.wait()
        parts = _on_host({name: getattr(checkpoint, name) for name in _PARTS})
        record = json.dumps({"step": checkpoint.step, **checkpoint.record})  # now: the caller goes on changing it
        self._under_way = self._background.submit(self._publish, checkpoint.step, parts, record)

    def wait(self) -> None:
        """Until the last checkpoint is on the disk.

        Raises:
            SqloraError: it cannot be written.
        """
        under_way, self._under_way = self._under_way, None
        if under_way:
            under_way.result()

    def finish(self) -> None:
        """As `wait`, beside the error that ends a run: what goes wrong here is a warning."""
        try:
            self.wait()
        except SqloraError as failure:
            print(f"warning: {failure}", file=sys.stderr)
        except Exception as failure:  # noqa: BLE001 - none may hide the error that ends the run
            print(f"warning: {self._folder}: the last checkpoint is not there ({failure!r})", file=sys.stderr)

    def _publish(self, step: int, parts: Parts, record: str) -> None:
        target = self._folder / _name(step)
        partial = self._folder / f".partial-{target.name}"
        shutil.rmtree(partial, ignore_errors=True)
        if target.is_dir() and _problem(target) is None:
            # Of the same inputs and step: what it holds of a validation, the next process computes again. To put
            # another in its place would leave a moment in which there is neither.
            return
        try:
            _write(partial, parts, record)
            parts.clear()  # their memory is needed no more
            _seal(partial)
            shutil.rmtree(target, ignore_errors=True)  # it is damaged, if it is there
            os.replace(partial, target)
            _sync(self._folder)
        except (OSError, RuntimeError) as error:  # the second is MLX's
            raise self._failure(target, partial, error) from None
        for old in steps(self._folder)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def _failure(self, target: Path, partial: Path, error: Exception) -> SqloraError:
        shutil.rmtree(partial, ignore_errors=True)
        before = steps(self._folder)
        good = f"from {before[-1].name}, the checkpoint before" if before else "from the start"
        there = next(path for path in (self._folder, *self._folder.resolve().parents) if path.is_dir())
        return SqloraError(
            target,
            found=f"a checkpoint that cannot be written ({error}; {shutil.disk_usage(there).free / 1e9:.1f} GB free)",
            expected="room on the disk for it, and a folder that may be written",
            next_step=f"Free some space and run dvc repro again: training goes on {good}.",
        )


def load_latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, and what is wrong with each newer one.

    Raises:
        SqloraError: if there are checkpoints and all of them are damaged.
    """
    damaged: list[str] = []
    for path in reversed(steps(folder)):
        problem = _problem(path)
        if problem is None:
            return _read(path), damaged
        damaged.append(f"{path}: found {problem}")
    if damaged:
        raise SqloraError(
            folder,
            found=f"{len(damaged)} checkpoint{'s, all of them' * (len(damaged) > 1)} damaged ({damaged[0]})",
            expected="at least one whole checkpoint",
            next_step=f"Check the disk. To start over, delete {folder} and run dvc repro.",
        )
    return None, []


def load_together(folder: Path, group: Group) -> Checkpoint | None:
    """The newest whole checkpoint that the first rank has, on every rank; says which, and warns of damaged ones."""
    mine, damaged = load_latest(folder) if group.rank == 0 else (None, [])
    for problem in damaged:
        print(f"warning: {problem}; going back to the checkpoint before it", file=sys.stderr)
    if mine:
        print(f"going on from {_name(mine.step)} in {folder}")
    record: dict[str, Any] | None = group.first({"step": mine.step} | mine.record if mine else None)
    if record is None:
        return None
    parts = [group.first_arrays(getattr(mine, name) if mine else {}) for name in _PARTS]
    return Checkpoint(record.pop("step"), parts[0], parts[1], parts[2], record)


def steps(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest last."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _on_host(parts: Parts) -> Parts:
    """The same arrays in the host's memory; those of a type come together, because a GPU stops for each transfer."""
    found: Parts = {part: {} for part in parts}
    for entries in _pieces([(part, *item) for part, arrays in parts.items() for item in arrays.items()]):
        whole = mx.concatenate([array.reshape(-1) for _, _, array in entries])
        mx.eval(whole)
        np.asarray(whole.view(mx.uint8, stream=mx.cpu))  # this is what moves them
        ends = np.cumsum([array.size for _, _, array in entries])[:-1].tolist()
        for (part, name, array), one in zip(entries, mx.split(whole, ends, stream=mx.cpu), strict=True):
            found[part][name] = one.reshape(array.shape, stream=mx.cpu)
    mx.eval(found)
    return found


def _pieces(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """All entries, those of a type together, but not too many numbers."""
    piece: list[Entry] = []
    for entry in sorted(entries, key=lambda entry: str(entry[2].dtype)):
        numbers = sum(array.size for _, _, array in piece) + entry[2].size
        if piece and (piece[0][2].dtype != entry[2].dtype or numbers > _PIECE):
            yield piece
            piece = []
        piece.append(entry)
    if piece:
        yield piece


def _write(partial: Path, parts: Parts, record: str) -> None:
    """A checkpoint in a new folder, but for its manifest. MLX writes without Python's lock."""
    partial.mkdir(parents=True)
    for name, arrays in parts.items():
        mx.save_safetensors(str(partial / f"{name}.safetensors"), arrays or {"empty": mx.zeros(1, stream=mx.cpu)})
    (partial / "record.json").write_text(record)


def _seal(partial: Path) -> None:
    """Bring a checkpoint's files to the disk, and then its manifest."""
    hashes = {path.name: _hash(path) for path in sorted(partial.iterdir())}
    for path in partial.iterdir():
        _sync(path)
    (partial / _MANIFEST).write_text(json.dumps(hashes))
    _sync(partial / _MANIFEST)


def _problem(path: Path) -> str | None:
    try:
        hashes = json.loads((path / _MANIFEST).read_text())
        assert isinstance(hashes, dict)
        lacking = _FILES - hashes.keys()
        if lacking:
            return f"a manifest without {', '.join(sorted(lacking))}"
        for name, expected in hashes.items():
            if _hash(path / name) != expected:
                return f"{name} with another content than its manifest says"
    except (OSError, ValueError, AssertionError) as error:
        return f"no readable manifest or file ({error})"
    return None


def _read(path: Path) -> Checkpoint:
    record = json.loads((path / "record.json").read_text())
    arrays = {}
    for name in _PARTS:
        loaded = mx.load(str(path / f"{name}.safetensors"))
        assert isinstance(loaded, dict)
        arrays[name] = {key: value for key, value in loaded.items() if key != "empty"}
        mx.eval(arrays[name])  # read now: the folder may go while the run goes on
    return Checkpoint(record.pop("step"), arrays["adapter"], arrays["optimizer"], arrays["best"], record)


def flatten(tree: Any) -> dict[str, mx.array]:
    """Flat name -> array."""
    return dict(tree_flatten(tree))


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if sys.platform == "darwin":
            import fcntl

            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # fsync alone stops at the drive's own cache there
        else:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
