"""Stored states of the frozen layers."""

from __future__ import annotations

import dataclasses
import errno
import gc
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock, Timeout
from train_runs import read_rows

from sqlora.distributed.group import ALONE, Group
from sqlora.train import states as states_module
from sqlora.train.inputs import _free_part
from sqlora.train.interruption import Interrupted
from sqlora.train.shared_pass import bounds_of, fill_together
from sqlora.train.states import Place, StateStore, key_of
from sqlora.train.stores import bytes_of, held, make_room
from sqlora.train.upper import _batches


def states(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


def test_what_was_added_is_read_padded_with_zeros(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "s", 4, "float32")
    one, two = states(1, 3), states(2, 5)
    store.add([("a", one), ("b", two)])
    assert "a" in store
    assert "c" not in store
    batch = read_rows(store, ["b", "a"], 6)
    assert batch.shape == (2, 6, 4)
    assert np.array_equal(batch[0, :5], two)
    assert np.array_equal(batch[1, :3], one)
    assert not batch[1, 3:].any()
    store.add([("c", states(3, 2))])
    assert np.array_equal(read_rows(store, ["c"], 2)[0], states(3, 2))
    store.settle()
    again = StateStore(tmp_path / "s", 4, "float32")
    assert np.array_equal(read_rows(again, ["c"], 2)[0], states(3, 2))
    assert np.array_equal(read_rows(again, ["a"], 3)[0], one)


def test_what_is_written_later_is_waited_for_by_whoever_asks(tmp_path: Path) -> None:
    asks: dict[str, Callable[[StateStore], object]] = {
        "in": lambda store: "a" in store,
        "read": lambda store: read_rows(store, ["a"], 3)[0],
        "added": lambda store: [place.key for place, _ in store.added()],
        "damaged": lambda store: store.damaged(["a"]),
        "add": lambda store: store.add([("b", states(2, 5))]),
        "settle": lambda store: store.settle(),
        "refresh": lambda store: store.refresh(),
        "learn": lambda store: store.learn([]),
        "drop": lambda store: store.drop([]),
    }
    for name, ask in asks.items():
        begun, go_on = threading.Event(), threading.Event()

        def slow(begun: threading.Event = begun, go_on: threading.Event = go_on) -> Iterator[tuple[str, np.ndarray]]:
            begun.set()
            assert go_on.wait(10)
            yield "a", states(1, 3)

        store = StateStore(tmp_path / name, 4, "float32")
        store.add(slow(), later=True)
        assert begun.wait(10), "it has returned, and the states are on their way"
        with ThreadPoolExecutor(1) as asking:
            answer = asking.submit(ask, store)
            time.sleep(0.02)
            assert not answer.done(), name
            go_on.set()
            answer.result(10)
        assert np.array_equal(read_rows(store, ["a"], 3)[0], states(1, 3))
        store.settle()
        assert np.array_equal(read_rows(StateStore(tmp_path / name, 4, "float32"), ["a"], 3)[0], states(1, 3))


def test_the_lock_is_held_until_what_is_written_later_is_written(tmp_path: Path) -> None:
    go_on = threading.Event()

    def slow() -> Iterator[tuple[str, np.ndarray]]:
        assert go_on.wait(10)
        yield "a", states(1, 3)

    def begin() -> None:  # nothing but the writer keeps the store and its lock, as when a run is interrupted
        lock = FileLock(tmp_path / "lock")
        lock.acquire()
        store = StateStore(tmp_path / "s", 4, "float32")
        store.hold(lock)
        store.add(slow(), later=True)

    begin()
    gc.collect()
    with pytest.raises(Timeout):
        FileLock(tmp_path / "lock").acquire(timeout=0.05)
    go_on.set()
    with FileLock(tmp_path / "lock", timeout=10):
        assert np.array_equal(read_rows(StateStore(tmp_path / "s", 4, "float32"), ["a"], 3)[0], states(1, 3))


def test_an_error_is_raised_when_nothing_writes_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller then lets go of the lock."""
    go_on = threading.Event()
    settle, store = StateStore._settle, StateStore(tmp_path / "s", 4, "float32")

    def first_fails(self: StateStore, places: Sequence[Place]) -> None:
        if places[0].key == "a":
            raise OSError(28, "No space left on device")
        assert go_on.wait(10)
        settle(self, places)

    monkeypatch.setattr(StateStore, "_settle", first_fails)
    store.add([("a", states(1, 3))])
    store.add([("b", states(2, 5))])
    with ThreadPoolExecutor(1) as asking:
        answer = asking.submit(store.settle)
        time.sleep(0.05)
        assert not answer.done()
        go_on.set()
        with pytest.raises(OSError, match="No space left"):
            answer.result(10)
    assert "b" in StateStore(tmp_path / "s", 4, "float32")


def test_what_could_not_be_added_is_not_there(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "s", 4, "float32")
    with pytest.raises(OSError, match="No space left"):
        store.add(full())
    assert "a" not in store
    assert store.added() == []


def test_what_is_written_later_is_kept_when_the_process_ends(tmp_path: Path) -> None:
    code = """
import sys, time, numpy as np
from pathlib import Path
from sqlora.train.states import StateStore

def slow():
    time.sleep(0.3)
    for key in "abc":
        yield key, np.ones((3, 4), np.float32)

StateStore(Path(sys.argv[1]), 4, "float32").add(slow(), later=True)
sys.exit(1)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert all(key in StateStore(tmp_path / "s", 4, "float32") for key in "abc")


def full() -> Iterator[tuple[str, np.ndarray]]:
    yield "a", states(1, 3)
    raise OSError(28, "No space left on device")


def test_whoever_asks_for_what_could_not_be_written_gets_the_error(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "s", 4, "float32")
    store.add(full(), later=True)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            read_rows(store, ["a"], 3)
    with pytest.raises(OSError, match="No space left"):
        store.settle()
    store._settling.shutdown()  # whatever was queued has been done
    assert "a" not in StateStore(tmp_path / "s", 4, "float32"), "all of them or none"


@pytest.mark.parametrize("cut", ["states", "index", "half a line"])
def test_after_a_crash_the_unfinished_part_is_gone_and_the_rest_is_whole(tmp_path: Path, cut: str) -> None:
    folder = tmp_path / "s"
    store = StateStore(folder, 4, "float32")
    store.add([("a", states(1, 3))])
    store.settle()
    whole = (folder / "index-0.jsonl").read_text()
    store.add([("b", states(2, 5))])
    store.settle()
    if cut == "states":  # the index came to the disk, the states did not
        os.truncate(folder / "states-0.bin", 3 * 16 + 7)
    elif cut == "index":
        (folder / "index-0.jsonl").write_text(whole)
    else:
        (folder / "index-0.jsonl").write_text(whole + '["b", 3')
    again = StateStore(folder, 4, "float32")
    assert "a" in again
    assert "b" not in again
    again.add([("c", states(4, 2))])
    again.settle()
    last = StateStore(folder, 4, "float32")
    assert np.array_equal(read_rows(last, ["a"], 3)[0], states(1, 3))
    assert np.array_equal(read_rows(last, ["c"], 2)[0], states(4, 2))


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x80
    path.write_bytes(content)


def test_damaged_states_are_found_and_can_be_added_again(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    store = StateStore(folder, 4, "float32")
    store.add([("a", states(1, 3)), ("b", states(2, 5)), ("c", states(3, 2))])
    store.settle()
    flip(folder / "states-0.bin", 4 * 16)  # in b
    assert store.damaged("abc") == [], "what this process computed"
    again = StateStore(folder, 4, "float32")
    found = again.damaged(["a", "b", "c", "unknown"])
    assert [(one.key, one.start, one.count) for one in found] == [("b", 3, 5)]
    assert again.damaged("abc") == [], "no example is looked at twice"
    assert again.drop(found) == ["b"]
    again.refresh()
    assert ["a" in again, "b" in again, "c" in again] == [True, False, True]
    again.add([("b", states(2, 5))])
    again.settle()
    again.refresh()
    assert np.array_equal(read_rows(again, "b", 5)[0], states(2, 5))
    last = StateStore(folder, 4, "float32")  # has both places of b
    found = last.damaged("abc")
    assert [one.start for one in found] == [3]
    assert last.drop(found) == [], "the other one is sound"
    assert np.array_equal(read_rows(last, "b", 5)[0], states(2, 5))


def test_states_that_cannot_be_read_are_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = StateStore(tmp_path / "s", 4, "float32")
    first.add([("a", states(1, 3)), ("b", states(2, 5))])
    first.settle()
    second = StateStore(tmp_path / "s", 4, "float32", part=1)

    def bad_sector(path: Path, *given: Any, **named: Any) -> Any:
        if str(path).endswith("states-0.bin"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return open(path, *given, **named)

    monkeypatch.setattr(states_module, "open", bad_sector, raising=False)
    assert sorted(second.drop(second.damaged(["a", "b"]))) == ["a", "b"]


@pytest.mark.parametrize("line", ["7", "{}", '["b", 3, 5]', '["b", -3, 5, 1]', '["b", null, 5, 1]', '["\x80'], ids=str)
def test_a_damaged_index_counts_up_to_the_damage(tmp_path: Path, line: str) -> None:
    folder = tmp_path / "s"
    store = StateStore(folder, 4, "float32")
    store.add([("a", states(1, 3))])
    store.settle()
    index = folder / "index-0.jsonl"
    index.write_bytes(index.read_bytes() + line.encode("latin-1") + b"\n")
    again = StateStore(folder, 4, "float32")
    assert ["a" in again, "b" in again] == [True, False]
    assert again.damaged("a") == []
    again.add([("b", states(2, 5))])
    again.settle()
    assert np.array_equal(read_rows(StateStore(folder, 4, "float32"), "b", 5)[0], states(2, 5))


def test_several_processes_add_to_files_of_their_own(tmp_path: Path) -> None:
    one, two = (StateStore(tmp_path / "s", 4, "float32", part) for part in (0, 1))
    one.add([("a", states(1, 3))])
    two.add([("b", states(2, 5))])
    two.settle()
    assert "b" not in one
    one.refresh()
    assert np.array_equal(read_rows(one, ["b", "a"], 5)[0], states(2, 5))


def test_what_others_have_added_can_be_read_before_it_is_settled(tmp_path: Path) -> None:
    one, two = (StateStore(tmp_path / "s", 4, "float32", part) for part in (0, 1))
    two.add([("a", states(1, 3)), ("b", states(2, 5))])
    two.settle()
    one.add([("c", states(3, 2))])
    two.add([("d", states(4, 4))])
    (tmp_path / "s" / "index-1.jsonl").write_text("")
    far = Place("e", 1, 12, 1, 0), 0  # behind the end of what is there
    other = dataclasses.replace(two.added()[2][0], key="g"), 5  # another disk's: the file here holds something else
    one.learn([*two.added(), far, (Place("f", 7, 0, 1, 0), 0), other])
    assert [key in one for key in "abcdefg"] == [True, True, True, True, False, False, False]
    found = read_rows(one, ["b", "d", "c"], 5)
    assert np.array_equal(found[0], states(2, 5))
    assert np.array_equal(found[1, :4], states(4, 4))
    assert np.array_equal(found[2, :2], states(3, 2))
    assert one.damaged("abcd") == [], "their checksums are not known yet"


@pytest.mark.parametrize("apart", [0, 1])
def test_ranks_of_a_disk_do_not_wait_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: int) -> None:
    one, two = (StateStore(tmp_path / "s", 4, "float32", part) for part in (0, 1))
    wanted = [(number, 7) for number in range(6)]
    gate = threading.Event()
    monkeypatch.setattr(StateStore, "_settle", lambda *_: gate.wait(60))
    monkeypatch.setattr("sqlora.train.upper.BATCH_TOKENS", 6)  # three examples

    def fill(store: StateStore, share: Sequence[Sequence[int]]) -> int:
        store.add([(key_of(tokens), states(tokens[0], 2)) for tokens in share])
        return len(share)

    messages: list[str] = []

    class Two(Group):
        """Rank 0, and what rank 1 would do beside it."""

        def __init__(self) -> None:
            super().__init__(disk=(0, 1))
            self.size = 2

        def each(self, value: float) -> list[float]:
            return [value, value]

        def gather(self, value: Any) -> list[Any]:
            messages.append("places")
            mine = {place["key"] for place, _ in value}
            fill(two, [tokens for tokens in wanted if key_of(tokens) not in mine])
            return [value, [[dataclasses.asdict(place), tail + apart] for place, tail in two.added()]]

    calls: list[int] = []
    filling = fill_together(one, wanted, (2,), Two(), lambda share: (calls.append(len(share)), fill(one, share))[1])
    assert (calls, filling.computed, messages) == ([3], 6, [])
    filling.finish()
    gate.set()
    assert messages == ["places"]
    # Files of another disk hold something else: each rank computes what it lacks by itself.
    assert (calls, filling.computed) == (([3, 3], 12) if apart else ([3], 6))
    found = read_rows(one, [key_of(tokens) for tokens in wanted], 2)
    assert np.array_equal(found, np.stack([states(tokens[0], 2) for tokens in wanted]))


@pytest.mark.parametrize(
    ("lengths", "parts", "bounds"),
    [
        ([], 2, [0, 0, 0]),
        ([5], 3, [0, 0, 1, 1]),  # a batch takes as long with one example as with many
        ([100] * 40, 2, [0, 20, 40]),
        ([100] * 41, 2, [0, 20, 41]),
        ([100] * 10 + [200] * 30, 4, [0, 10, 20, 30, 40]),
        ([100] * 20 + [3000] * 4, 2, [0, 22, 24]),
    ],
)
def test_shares_have_about_as_many_tokens_and_whole_batches(lengths: list[int], parts: int, bounds: list[int]) -> None:
    assert bounds_of(lengths, parts) == bounds


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_shares_have_no_more_batches_than_the_whole(parts: int) -> None:
    buckets = (40, 97, 300, 1500, 4000)
    lengths = sorted(np.random.default_rng(parts).choice(buckets, 150).tolist())
    items = [(str(number), (1,) * length) for number, length in enumerate(lengths)]

    def tokens(start: int, end: int) -> list[int]:
        return [batch.size for _, batch in _batches(items[start:end], buckets)]

    bounds = bounds_of(lengths, parts)
    assert (bounds[0], bounds[-1]) == (0, 150)
    shares = [tokens(*pair) for pair in pairwise(bounds)]
    assert [size for share in shares for size in share] == tokens(0, 150)
    assert max(map(sum, shares)) - min(map(sum, shares)) <= 2 * 4000


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    for number, name in enumerate(("old", "mine", "new")):
        store = StateStore(tmp_path / name, 4, "float32")
        store.add([("a", states(1, 1000))])
        store.settle()
        os.utime(tmp_path / name, (number, number))
    assert make_room(tmp_path, tmp_path / "mine", 3 * 20_000) == []
    assert make_room(tmp_path, tmp_path / "mine", 2 * 20_000) == ["old"]
    assert make_room(tmp_path, tmp_path / "mine", 0) == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert make_room(tmp_path / "none", tmp_path / "mine", 0) == []


def test_a_part_that_somebody_else_added_to_is_not_written_on(tmp_path: Path) -> None:
    one, other = (StateStore(tmp_path / "s", 4, "float32") for _ in range(2))
    one.add([("a", states(1, 3))])
    with pytest.raises(AssertionError, match="another process"):
        other.add([("b", states(2, 5))])


def test_a_store_in_use_is_not_deleted(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "old", 4, "float32")
    store.add([("a", states(1, 1000))])
    store.settle()
    with FileLock(tmp_path / "old" / "lock-0"):
        assert make_room(tmp_path, tmp_path / "mine", 0) == []
    assert make_room(tmp_path, tmp_path / "mine", 0) == ["old"]


def test_keys_tell_texts_apart() -> None:
    assert key_of([1, 2]) == key_of((1, 2))
    assert len({key_of(tokens) for tokens in ([1, 2], [2, 1], [1, 2, 0], [12], [])}) == 5


class Killed(BaseException):
    """As SIGKILL: nobody catches it."""


def test_a_kill_while_an_index_is_mended_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "s"
    store = StateStore(folder, 4, "float32")
    store.add([("a", states(1, 3)), ("b", states(2, 5))])
    store.settle()
    index, old = folder / "index-0.jsonl", tmp_path / "old"
    index.write_text(index.read_text() + '["c", 8')
    before = index.read_text()
    os.link(index, old)

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            StateStore(folder, 4, "float32")
    assert index.read_text() == before
    again = StateStore(folder, 4, "float32")
    assert old.read_text() == before, "nobody writes into an index that is there"
    assert index.read_text() == "".join(before.splitlines(keepends=True)[:2])
    assert np.array_equal(read_rows(again, "b", 5)[0], states(2, 5))


def test_a_whole_index_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StateStore(tmp_path / "s", 4, "float32")
    store.add([("a", states(1, 3))])
    store.settle()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert "a" in StateStore(tmp_path / "s", 4, "float32")


def test_what_is_not_kept_leaves_the_disk(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    one, two = (StateStore(folder, 4, "float32", part) for part in (0, 1))
    for store, keys in ((one, "abc"), (two, "def")):
        store.add([(key, states(ord(key), 50)) for key in keys])
        store.settle()
    flip(folder / "states-0.bin", 60 * 16)  # in b
    (folder / "states-7.bin").write_bytes(bytes(9000))  # a killed run's, without an index
    (folder / ".partial-index-7.jsonl").write_bytes(bytes(90))
    one, two = (StateStore(folder, 4, "float32", part) for part in (0, 1))
    one.refresh()
    damaged = one.damaged("abcdef")
    assert [place.key for place in damaged] == ["b"]
    for store in (one, two):
        store.drop(damaged)
    size = bytes_of(folder)
    with FileLock(folder / "lock-0"), FileLock(folder / "lock-1"):  # of this run's ranks
        dropped = one.keep_only(["a", "b", "e", "a", "x"], (0, 1))
        assert dropped == (3, size - bytes_of(folder))  # b is damaged, and counts as gone before
    two.reopen()
    assert sum(path.stat().st_size for path in folder.glob("states-*")) == 2 * 50 * 16
    assert not list(folder.glob(".partial-*"))
    for store in (one, two, StateStore(folder, 4, "float32", 3)):
        assert [key in store for key in "abcdef"] == [True, False, False, False, True, False]
        assert store.damaged("ae") == []
        assert np.array_equal(read_rows(store, "ea", 50), [states(ord("e"), 50), states(ord("a"), 50)])
    for store, key in ((one, "b"), (two, "c")):
        store.add([(f"{key}2", states(2, 50)), (key, states(ord(key), 50))])  # one of them where b lay
        store.settle()
        store.refresh()
        assert np.array_equal(read_rows(store, [key], 50)[0], states(ord(key), 50))
    last = StateStore(folder, 4, "float32")
    assert last.damaged("abce") == []
    assert np.array_equal(read_rows(last, "bcae", 50), [states(ord(key), 50) for key in "bcae"])
    assert last.keep_only([], (0,)) is not None
    assert not any(path.stat().st_size for path in folder.iterdir())


def test_states_that_another_run_uses_stay(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    store = StateStore(folder, 4, "float32")
    store.add([("a", states(1, 3)), ("b", states(2, 5))])
    store.settle()
    store = StateStore(folder, 4, "float32")
    with FileLock(folder / "lock-1"):
        before = {path: path.read_bytes() for path in folder.iterdir()}
        assert store.keep_only(["a"], (0,)) is None
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert "b" in store
    dropped = store.keep_only(["a"], (0,))
    assert dropped is not None
    assert dropped[0] == 1


@pytest.mark.parametrize("fails", ["read", "write", "index"])
def test_nothing_is_dropped_where_no_copy_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    folder = tmp_path / "s"
    store = StateStore(folder, 4, "float32")
    store.add([("a", states(1, 3)), ("b", states(2, 5)), ("c", states(3, 4))])
    store.settle()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    store = StateStore(folder, 4, "float32")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if fails == "read":
        os.truncate(folder / "states-0.bin", 8 * 16)
        before[folder / "states-0.bin"] = before[folder / "states-0.bin"][: 8 * 16]
    else:
        monkeypatch.setattr(os, "fsync" if fails == "write" else "replace", full)
    with pytest.raises(OSError, match=r"shorter|No space"):
        store.keep_only(["a", "c"], (0,))
    left = {path: path.read_bytes() for path in folder.iterdir()}
    assert left == before
    assert all(key in store for key in "abc")


def test_a_kill_while_states_are_dropped_leaves_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after whatever changes the folder."""
    survived, number = False, 0
    while not survived:
        folder = tmp_path / f"s{number}"
        for part, keys in enumerate(("abc", "def")):
            store = StateStore(folder, 4, "float32", part)
            store.add([(key, states(ord(key), 5)) for key in keys])
            store.settle()
        store = StateStore(folder, 4, "float32")
        left = [number]

        def counted(plain: Callable[..., Any], left: list[int] = left) -> Callable[..., Any]:
            def call(*given: Any, **named: Any) -> Any:
                if not left[0]:
                    raise Killed
                left[0] -= 1
                return plain(*given, **named)

            return call

        with monkeypatch.context() as patched:
            patched.setattr(states_module, "open", counted(open), raising=False)
            for where, name in ((os, "fsync"), (os, "replace"), (Path, "unlink")):
                patched.setattr(where, name, counted(getattr(where, name)))
            try:
                store.keep_only("be", (0,))
                survived = True
            except Killed:
                pass
        for part in (0, 1, 2, 3):  # whichever the next run gets
            copy = tmp_path / f"s{number}-{part}"
            shutil.copytree(folder, copy)
            again = StateStore(copy, 4, "float32", part)
            assert again.damaged("abcdef") == []
            assert "b" in again
            assert "e" in again
            again.add([("g", states(ord("g"), 5))])
            again.settle()
            for key in "abcdefg":
                if key in again:
                    assert np.array_equal(read_rows(again, [key], 5)[0], states(ord(key), 5)), (number, key)
            again = StateStore(copy, 4, "float32")
            assert again.damaged("abcdefg") == []
            again.keep_only("beg", (0,))
            assert sum(path.stat().st_size for path in copy.glob("states-*")) == 3 * 5 * 16
        number += 1
    assert number > 10


def test_files_that_vanish_meanwhile_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StateStore(tmp_path / "old", 4, "float32")
    store.add([("a", states(1, 1000))])
    store.settle()
    (tmp_path / "old" / "states-1.bin").symlink_to("gone")  # listed, but whoever looks at it finds nothing
    assert bytes_of(tmp_path) < 20_000
    assert make_room(tmp_path, tmp_path / "mine", 20_000) == []
    (tmp_path / "going").mkdir()
    stat = Path.stat

    def going(path: Path, **named: Any) -> os.stat_result:
        found = stat(path, **named)
        if path.name == "going":
            path.rmdir()
        return found

    monkeypatch.setattr(Path, "stat", going)
    assert make_room(tmp_path, tmp_path / "mine", 0) == ["old"]


def test_a_run_that_begins_while_its_store_is_deleted_has_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "states" / "old"
    folder.mkdir(parents=True)
    (folder / "states-0.bin").write_bytes(bytes(1000))
    deleting, go_on = threading.Event(), threading.Event()
    rmtree = shutil.rmtree

    def slow(path: Path) -> None:
        deleting.set()
        assert go_on.wait(10)
        rmtree(path)

    monkeypatch.setattr(shutil, "rmtree", slow)
    with ThreadPoolExecutor(2) as pool:
        making = pool.submit(make_room, tmp_path / "states", tmp_path / "states" / "mine", 0)
        assert deleting.wait(10)
        beginning = pool.submit(_free_part, folder, ALONE, lambda: False)
        time.sleep(0.2)
        assert not beginning.done()
        go_on.set()
        assert making.result(10) == ["old"]
        part, lock = beginning.result(10)
    assert part == 0
    assert [path.name for path in folder.iterdir()] == ["lock-0"]
    assert make_room(tmp_path / "states", tmp_path / "states" / "mine", 0) == []
    assert Path(lock.lock_file).exists()


def test_a_run_that_waits_for_another_one_says_so_and_can_be_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sqlora.train.stores.QUIET_SECONDS", 0.01)
    root, asked = tmp_path / "states", threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with held(root):
            waiting = pool.submit(_free_part, root / "s", ALONE, asked.is_set)
            time.sleep(0.5)
            assert not waiting.done()
            asked.set()
            with pytest.raises(Interrupted):
                waiting.result(10)
        assert capsys.readouterr().out == f"another run makes room in {root}; waiting for its end\n"
        asked.clear()
        with held(root):
            waiting = pool.submit(_free_part, root / "s", ALONE, asked.is_set)
            time.sleep(0.5)
        assert waiting.result(10)[0] == 0
    with FileLock(tmp_path / "states.lock", timeout=0):
        assert "another run" in capsys.readouterr().out


def test_a_run_that_is_asked_to_end_while_it_copies_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    store = StateStore(folder, 4, "float32")
    store.add([(key, states(number, 3)) for number, key in enumerate("abc")])
    store.settle()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    asked = iter([False, True])
    with pytest.raises(Interrupted):
        StateStore(folder, 4, "float32").keep_only(["a", "b"], (0,), lambda: next(asked))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
