"""Hidden states of the frozen layers, kept on disk: what the lowest trained layer reads of each example.

A store is a folder of files of states, one a process, appended to, and an index beside each, with a checksum of each
example's states. It belongs to one base model, one number of frozen layers, one number type and one version of MLX; its
folder's name is a fingerprint of these.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, count, groupby
from pathlib import Path

import numpy as np
from filelock import BaseFileLock, Timeout
from numpy.typing import NDArray

from sqlora.publish import publish_file
from sqlora.train.interruption import Interrupted
from sqlora.train.stores import bytes_of, held, unused

FORMAT = 5  # of the files; goes up when older ones cannot be read any more, or would have other bits now
ENTRY_BYTES = 80  # of an example in an index, at most
_CHECKERS = 8  # threads: zlib leaves Python's lock


@dataclass(frozen=True)
class Place:
    """Where states of an example lie: `count` rows of a part's file, from `start` on; crc: CRC-32 of their bytes."""

    key: str
    part: int
    start: int
    count: int
    crc: int

    @property
    def end(self) -> int:
        """The row behind the last."""
        return self.start + self.count

    def line(self) -> str:
        """Of an index."""
        return json.dumps([self.key, self.start, self.count, self.crc]) + "\n"


def key_of(tokens: Sequence[int]) -> str:
    """What an example is known by: the tokens that go into the model."""
    return hashlib.sha256(np.asarray(tokens, dtype=np.int32).tobytes()).hexdigest()[:32]


class StateStore:
    """States of examples by key; each is (tokens, width), and a token's takes `row_bytes`.

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
        self.row_bytes = width * self.dtype.itemsize
        self._places: dict[str, list[Place]] = {}  # those to be preferred first
        self._damaged: set[tuple[int, int]] = set()  # part, start
        self._checked: set[str] = set()
        self._added: list[tuple[Place, int]] = []
        self._ends: dict[int, int] = {}  # part -> tokens
        self._maps: dict[int, NDArray[np.generic]] = {}
        self._settling = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[None] | None = None
        self._lock: BaseFileLock | None = None
        self._unsettled: list[Future[None]] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._mend()
        self.refresh()
        os.utime(folder)  # the least recently used folder goes first when space is short

    def __contains__(self, key: str) -> bool:
        self.wait()
        return key in self._places

    def add(self, states: Iterable[tuple[str, NDArray[np.generic]]], *, later: bool = False) -> None:
        """Append states; after a crash either all of them are there or none.

        They can be read at once. They come to the disk, and then into the index, while the caller goes on: `settle`.

        Args:
            later: write them while the caller goes on, too; whoever asks for something waits.

        Raises:
            OSError: they cannot be written. Those that are written later raise it in whatever is asked for next.
        """
        self.wait()
        places: list[Place] = []  # filled by whoever writes; both tasks are queued now, for at exit none can be
        if later:
            self._writing = self._settling.submit(self._write, states, places)
        else:
            self._write(states, places)
        self._unsettled.append(self._settling.submit(self._settle, places))

    def wait(self) -> None:
        """Until all that was added is in the files.

        Raises:
            OSError: it cannot be written.
        """
        writing = self._writing  # two threads may wait
        if writing is not None:
            writing.result()
            if self._writing is writing:
                self._writing = None

    def _write(self, states: Iterable[tuple[str, NDArray[np.generic]]], places: list[Place]) -> None:
        try:
            self._append(states, places)
        except BaseException:
            places.clear()  # all of them or none
            raise

    def _append(self, states: Iterable[tuple[str, NDArray[np.generic]]], places: list[Place]) -> None:
        added = []
        with open(self._states(self._part), "ab") as file:
            start, left = divmod(file.seek(0, os.SEEK_END), self.row_bytes)
            assert (start, left) == (self._ends.get(self._part, 0), 0), "another process has added to this part"
            for key, array in states:
                assert array.dtype == self.dtype
                assert array.shape[1] == self.width
                file.write(np.ascontiguousarray(array).data)
                places.append(Place(key, self._part, start, len(array), 0))
                added.append((places[-1], zlib.crc32(np.ascontiguousarray(array[-1]).data)))
                start += len(array)
        for place in places:
            self._note(place)
            self._checked.add(place.key)
        self._added += added
        self._ends[self._part] = start
        self._maps.pop(self._part, None)

    def settle(self) -> None:
        """Wait until all that was added has come to the disk and into the index.

        Raises:
            OSError: it could not.
        """
        futures.wait(self._unsettled)  # all of them: none may still write when the caller lets go of the lock
        self.wait()
        for future in self._unsettled:
            future.result()
        self._unsettled.clear()

    def hold(self, lock: BaseFileLock) -> None:
        """Keep a lock for as long as this store, and what it has to write, is there."""
        self._lock = lock

    def _settle(self, places: Sequence[Place]) -> None:
        with open(self._states(self._part), "ab") as file:
            os.fsync(file.fileno())
        lines = [replace(one, crc=self._crc(one)).line() for one in places]
        with open(self._index(self._part), "a", encoding="ascii") as file:
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())

    def refresh(self) -> None:
        """See what other processes have settled."""
        self.wait()
        self._maps = {}
        for path in sorted(self.folder.glob("index-*.jsonl")):
            for place in self._entries(int(path.stem.removeprefix("index-"))):
                self._note(place)
                self._ends[place.part] = max(self._ends.get(place.part, 0), place.start + place.count)

    def added(self) -> list[tuple[Place, int]]:
        """What this process has added, each with the CRC-32 of its last row, which depends on all tokens."""
        self.wait()
        return list(self._added)

    def learn(self, added: Iterable[tuple[Place, int]]) -> None:
        """See what other processes have added, on the disk or not yet, where the files here hold it."""
        self.wait()
        for place, tail in added:
            if place.part != self._part and self._crc(replace(place, start=place.end - 1, count=1)) == tail:
                self._note(place)
                self._checked.add(place.key)
                self._ends[place.part] = max(self._ends.get(place.part, 0), place.end)
        self._maps = {}

    def damaged(self, keys: Iterable[str], stop: Callable[[], bool] = lambda: False) -> list[Place]:
        """Compare stored states with their checksums; returns the places of those that differ.

        Looks at what earlier processes stored and at no example twice. Where an example has states in several places,
        one that is sound is enough.

        Args:
            stop: asked before each example; once it is true, nobody wants to know any more.
        """
        self.wait()
        keys = [key for key in keys if key in self._places and key not in self._checked]
        with ThreadPoolExecutor(max_workers=min(_CHECKERS, os.cpu_count() or 1)) as pool:
            found = list(chain.from_iterable(pool.map(lambda key: [] if stop() else self._unsound(key), keys)))
        self._checked.update(keys)
        return found

    def drop(self, places: Iterable[Place]) -> list[str]:
        """Forget places; returns the examples that have no other one, and are to be computed again."""
        self.wait()
        lost = []
        for place in places:
            self._damaged.add((place.part, place.start))
            self._places[place.key] = [one for one in self._places.get(place.key, []) if one != place]
            if not self._places[place.key]:
                del self._places[place.key]
                self._checked.discard(place.key)
                lost.append(place.key)
        return lost

    def keep_only(
        self, keys: Iterable[str], parts: Collection[int], stop: Callable[[], bool] = lambda: False
    ) -> tuple[int, int] | None:
        """Take all states but those of some examples off the disk, before anything is added here.

        What stays is copied to a part of its own, and needs room for that, before the old parts go: a kill at any
        moment leaves one of the two. Places that were dropped as damaged are not copied.

        Args:
            parts: of all processes of this run, which then `reopen` the folder; this one's is among them.
            stop: asked before each example.

        Returns:
            how many examples have no states any more, and by how many bytes the folder is smaller; None if another
            process uses the folder, and nothing has changed.

        Raises:
            OSError: the copy cannot be made; nothing has changed.
            Interrupted: `stop` said so; likewise.
        """
        assert not self._added, "checksums of what was added are in the index only"
        with held(self.folder.parent, stop), suppress(Timeout), unused(self.folder, but=parts):
            before, known = bytes_of(self.folder), len(self._places)
            kept = [self._places[key][0] for key in dict.fromkeys(keys) if key in self._places]
            files = [*self.folder.glob("index-*"), *self.folder.glob("states-*")]  # states never go before their index
            numbers = (one for one in count() if one not in parts)
            new = next(one for one in numbers if self._states(one) not in files and self._index(one) not in files)
            if kept:
                self._copy(kept, new, stop)
            for file in [*files, *self.folder.glob(".partial-*")]:  # the latter a killed run's
                file.unlink(missing_ok=True)
            self.reopen()
            return known - len(kept), before - bytes_of(self.folder)
        return None

    def _copy(self, places: Iterable[Place], part: int, stop: Callable[[], bool]) -> None:
        """To a part without files, the index last."""
        copied, start = [], 0
        try:
            with open(self._states(part), "wb") as target:
                in_order = sorted(places, key=lambda one: (one.part, one.start))
                for number, group in groupby(in_order, lambda one: one.part):
                    with open(self._states(number), "rb") as source:
                        for place in group:
                            if stop():
                                raise Interrupted
                            source.seek(place.start * self.row_bytes)
                            data = source.read(place.count * self.row_bytes)
                            if len(data) != place.count * self.row_bytes:
                                raise OSError(errno.EIO, "the file is shorter than its index says", source.name)
                            target.write(data)
                            copied.append(replace(place, part=part, start=start))
                            start += place.count
                target.flush()
                os.fsync(target.fileno())
            self._write_index(part, copied)
        except (OSError, Interrupted):
            for path in (self._index(part), self._states(part)):
                path.unlink(missing_ok=True)
            raise

    def reopen(self) -> None:
        """See the folder as it is now that a process of this run has called `keep_only`; before anything is added."""
        self._places.clear()
        self._ends.clear()
        self._damaged.clear()  # these places have gone, and others may come to lie there
        self.refresh()

    def read(self, keys: Sequence[str], starts: Sequence[int], tokens: int) -> NDArray[np.generic]:
        """The states of some examples, zeros between them.

        Args:
            starts: where each begins.

        Returns:
            (tokens, width)
        """
        self.wait()
        batch = np.zeros((tokens, self.width), dtype=self.dtype)
        for start, key in zip(starts, keys, strict=True):
            place = self._places[key][0]
            if place.part not in self._maps:
                shape = (self._ends[place.part], self.width)
                self._maps[place.part] = np.memmap(self._states(place.part), dtype=self.dtype, mode="r", shape=shape)
            batch[start : start + place.count] = self._maps[place.part][place.start : place.start + place.count]
        return batch

    def _note(self, place: Place) -> None:
        known = self._places.setdefault(place.key, [])
        same = any((one.part, one.start) == (place.part, place.start) for one in known)
        if not same and (place.part, place.start) not in self._damaged:
            known.append(place)
        if not known:
            del self._places[place.key]

    def _unsound(self, key: str) -> list[Place]:
        """The places of an example's states before the first that is sound."""
        found = []
        for place in self._places[key]:
            if self._crc(place) == place.crc:
                break
            found.append(place)
        return found

    def _crc(self, place: Place) -> int:
        """Of what lies there; -1 if that ends before the place does or cannot be read."""
        # Read, not mapped: the pages of a mapped file count as this process's memory.
        try:
            with open(self._states(place.part), "rb") as file:
                file.seek(place.start * self.row_bytes)
                data = file.read(place.count * self.row_bytes)
        except OSError:  # a bad sector, for one
            return -1
        return zlib.crc32(data) if len(data) == place.count * self.row_bytes else -1

    def _states(self, part: int) -> Path:
        return self.folder / f"states-{part}.bin"

    def _index(self, part: int) -> Path:
        return self.folder / f"index-{part}.jsonl"

    def _entries(self, part: int) -> Iterator[Place]:
        """The entries of an index up to the first that a crash cut short or left without its states."""
        index, states = self._index(part), self._states(part)
        try:
            there = states.stat().st_size // self.row_bytes
            lines = index.read_text(encoding="ascii", errors="replace").splitlines(keepends=True)
        except FileNotFoundError:  # a shared disk may show late that another machine has deleted it
            return
        for line in lines:
            try:
                key, start, count, crc = json.loads(line)
                place = Place(str(key), part, int(start), int(count), int(crc))
            except (ValueError, TypeError):
                return
            if not line.endswith("\n") or min(place.start, place.count) < 0 or place.start + place.count > there:
                return
            yield place

    def _mend(self) -> None:
        """Cut off this part's files what a killed run left unfinished, so that appending goes on at the right place."""
        places = list(self._entries(self._part))
        end = max((one.start + one.count for one in places), default=0)
        index = self._index(self._part)
        # A full disk has no room for another index, and states that are there need none.
        if not index.exists() or index.read_bytes() != "".join(place.line() for place in places).encode("ascii"):
            self._write_index(self._part, places)
        with open(self._states(self._part), "ab") as file:
            file.truncate(end * self.row_bytes)

    def _write_index(self, part: int, places: Iterable[Place]) -> None:
        """A kill leaves the old one or this one, whole."""
        with publish_file(self._index(part)) as file:
            file.write_text("".join(place.line() for place in places), encoding="ascii")
