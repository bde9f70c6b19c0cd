"""Hidden states of the frozen layers, kept on disk: what the lowest trained layer reads of each example.

A store is a folder of files of states, one a process, appended to, and an index beside each. It belongs to one base
model, one number of frozen layers and one number type; its folder's name is a fingerprint of these.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

ROOT = Path(".sqlora/states")


def key_of(tokens: Sequence[int]) -> str:
    """What an example is known by: the tokens that go into the model."""
    return hashlib.sha256(np.asarray(tokens, dtype=np.int32).tobytes()).hexdigest()[:32]


class StateStore:
    """States of examples by key; each is (tokens, width).

    Args:
        folder: made if it is not there.
        width: of the residual stream.
        dtype: of numpy; bfloat16, which numpy lacks, is kept as uint16.
        part: number of this process; each of several that share the folder appends to files of its own.
    """

    def __init__(self, folder: Path, width: int, dtype: str, part: int = 0) -> None:
        self.folder = folder
        self.width = width
        self.dtype = np.dtype(dtype)
        self._part = part
        self._row = width * self.dtype.itemsize
        self._places: dict[str, tuple[int, int, int]] = {}  # key -> part, first token, tokens
        self._ends: dict[int, int] = {}  # part -> tokens
        self._maps: dict[int, NDArray[np.generic]] = {}
        self._settling = ThreadPoolExecutor(max_workers=1)
        self._unsettled: list[Future[None]] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._mend()
        self.refresh()
        os.utime(folder)  # the least recently used folder goes first when space is short

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def add(self, states: Iterable[tuple[str, NDArray[np.generic]]]) -> None:
        """Append states; after a crash either all of them are there or none.

        They can be read at once. They come to the disk, and then into the index, while the caller goes on: `settle`.
        """
        lines = []
        with open(self._states(self._part), "ab") as file:
            start, left = divmod(file.seek(0, os.SEEK_END), self._row)
            assert (start, left) == (self._ends.get(self._part, 0), 0), "another process has added to this part"
            for key, array in states:
                assert array.dtype == self.dtype
                assert array.shape[1] == self.width
                file.write(np.ascontiguousarray(array).data)
                lines.append(json.dumps([key, start, len(array)]) + "\n")
                self._places.setdefault(key, (self._part, start, len(array)))
                start += len(array)
        self._ends[self._part] = start
        self._maps.pop(self._part, None)
        self._unsettled.append(self._settling.submit(self._settle, "".join(lines)))

    def settle(self) -> None:
        """Wait until all that was added has come to the disk and into the index.

        Raises:
            OSError: it could not.
        """
        for future in self._unsettled:
            future.result()
        self._unsettled.clear()

    def _settle(self, lines: str) -> None:
        with open(self._states(self._part), "ab") as file:
            os.fsync(file.fileno())
        with open(self._index(self._part), "a", encoding="ascii") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())

    def refresh(self) -> None:
        """See what other processes have settled."""
        self._maps = {}
        for path in sorted(self.folder.glob("index-*.jsonl")):
            part = int(path.stem.removeprefix("index-"))
            for key, start, count in self._entries(part):
                self._places.setdefault(key, (part, start, count))
                self._ends[part] = max(self._ends.get(part, 0), start + count)

    def read(self, keys: Sequence[str], length: int) -> NDArray[np.generic]:
        """The states of some examples, zeros behind each.

        Returns:
            (len(keys), length, width)
        """
        batch = np.zeros((len(keys), length, self.width), dtype=self.dtype)
        for row, key in enumerate(keys):
            part, start, count = self._places[key]
            if part not in self._maps:
                shape = (self._ends[part], self.width)
                self._maps[part] = np.memmap(self._states(part), dtype=self.dtype, mode="r", shape=shape)
            batch[row, :count] = self._maps[part][start : start + count]
        return batch

    def _states(self, part: int) -> Path:
        return self.folder / f"states-{part}.bin"

    def _index(self, part: int) -> Path:
        return self.folder / f"index-{part}.jsonl"

    def _entries(self, part: int) -> list[tuple[str, int, int]]:
        """The entries of an index up to the first that a crash cut short or left without its states."""
        index, states = self._index(part), self._states(part)
        if not index.exists() or not states.exists():
            return []
        there = states.stat().st_size // self._row
        entries = []
        for line in index.read_text(encoding="ascii").splitlines(keepends=True):
            try:
                key, start, count = json.loads(line)
            except ValueError:
                break
            if not line.endswith("\n") or start + count > there:
                break
            entries.append((key, start, count))
        return entries

    def _mend(self) -> None:
        """Cut off this part's files what a killed run left unfinished, so that appending goes on at the right place."""
        entries = self._entries(self._part)
        end = max((start + count for _, start, count in entries), default=0)
        text = "".join(json.dumps(list(entry)) + "\n" for entry in entries)
        self._index(self._part).write_text(text, encoding="ascii")
        with open(self._states(self._part), "ab") as file:
            file.truncate(end * self._row)


def make_room(root: Path, keep: Path, most_bytes: int) -> list[str]:
    """Delete the least recently used stores until the others and `keep` take at most so much; returns their names.

    A store that another run uses, whose lock it holds, stays.
    """
    stores = [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in stores}
    deleted = []
    for path in sorted(stores, key=lambda path: path.stat().st_mtime):
        if sum(sizes.values()) <= most_bytes:
            break
        if path == keep:
            continue
        with suppress(Timeout), ExitStack() as stack:
            for lock in path.glob("lock-*"):
                stack.enter_context(FileLock(lock, timeout=0))
            shutil.rmtree(path)
            del sizes[path]
            deleted.append(path.name)
    return deleted
