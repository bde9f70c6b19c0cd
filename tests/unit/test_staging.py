"""Inputs of steps in arrays that take turns, with a driver that does on the host what CUDA's does."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlora.mlx import mx, tree_flatten

import numpy as np
import pytest
from train_runs import arrays, as_on_cuda, equal, fresh_start, run

from sqlora.train import feed as feed_module
from sqlora.train.feed import Feed, Ready
from sqlora.train.loss import Batch
from sqlora.train.staging import Staging, StagingError, make_staging


class Driver:
    """CUDA's, as far as staging uses it. Copies are made when the stream is waited for.

    Args:
        lacks: a function's name.
    """

    def __init__(self, lacks: str = "") -> None:
        self.failing = ""  # a function that answers 2, out of memory
        self.sent = self.made = self.streams = 0
        self.blocks: dict[int, Any] = {}
        self._queued: list[tuple[int, int, int]] = []
        functions: dict[str, Callable[..., int]] = {
            "cuDevicePrimaryCtxRetain": lambda *_: 0,
            "cuCtxSetCurrent": lambda *_: 0,
            "cuStreamCreate": self._create,
            "cuStreamDestroy_v2": self._destroy,
            "cuStreamSynchronize": self._wait,
            "cuMemHostAlloc": self._allocate,
            "cuMemFreeHost": self._free,
            "cuMemcpyAsync": self._copy,
        }
        for name, function in functions.items():
            if name != lacks:
                setattr(self, name, self._failing(name, function))

    def _failing(self, name: str, function: Callable[..., int]) -> Callable[..., int]:
        return lambda *given: 2 if name == self.failing else function(*given)

    def _create(self, *_: Any) -> int:
        self.streams += 1
        return 0

    def _destroy(self, _: Any) -> int:
        self.streams -= 1
        return 0

    def _allocate(self, address: Any, size: ctypes.c_size_t, _: int) -> int:
        memory = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(memory)
        self.blocks[address._obj.value] = memory
        self.made += 1
        return 0

    def _free(self, address: ctypes.c_void_p) -> int:
        if address.value is None:
            return 1
        del self.blocks[address.value]
        return 0

    def _copy(self, target: Any, source: Any, size: Any, _: Any) -> int:
        self._queued.append((target.value, source.value, size.value))
        return 0

    def _wait(self, _: Any) -> int:
        for one in self._queued:
            ctypes.memmove(*one)
        self.sent += len(self._queued)
        self._queued.clear()
        return 0


def batch_of(step: int) -> Batch:
    """Two rows of three tokens' states."""
    states = np.full((2, 3, 4), step, dtype=np.float32)
    targets = np.arange(5, dtype=np.int32) + step
    return Batch(states, np.arange(5, dtype=np.int32), targets, np.ones(5, np.float32), np.ones(5, np.float32), 6)


def staged(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    monkeypatch.setattr("sqlora.train.feed.has_cuda", lambda: True)
    monkeypatch.setattr("sqlora.train.staging.load_driver", lambda: driver)


@pytest.mark.parametrize("together", [1, 2, 5])
def test_a_step_is_kept_until_the_next_but_one_is_asked_for(monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    driver = Driver()
    staged(monkeypatch, driver)
    shared = feed_module._shared
    monkeypatch.setattr(feed_module, "_shared", lambda size: pytest.fail("made anew") if size else shared(0))

    def gather(step: int) -> tuple[list[Batch], list[int]]:
        return [batch_of(step)] * (step % 3), [step]  # none if there are fewer examples than ranks

    feed = Feed(gather, 40, 64_000_000 // together)
    feed.begin(0)
    issued: list[tuple[int, list[Ready]]] = []
    for step in range(40):
        issued.append((step, feed(step).batches))
        feed._background.submit(lambda: None).result()  # all that this has begun
        for number, batches in issued[-2:]:  # the device still works on the one before
            assert len(batches) == number % 3
            for ready in batches:
                assert np.array_equal(np.array(ready.inputs), batch_of(number).inputs)
                assert np.array_equal(np.array(ready.targets), batch_of(number).targets)
    assert driver.sent == {1: 26, 2: 20, 5: 8}[together], "those that hold something"
    assert driver.made <= 3
    assert len(driver.blocks) == 1
    del feed, issued, batches, ready
    gc.collect()
    assert (driver.blocks, driver.streams) == ({}, 0)


def test_room_grows_and_arrays_with_it() -> None:
    driver = Driver()
    staging = Staging(driver)
    seen = []
    for size in (800, 800, 810, 2000, 100):
        staging.room(size)[:size] = size % 251
        array = staging.send(size)
        assert np.array(array)[:size].tolist() == [size % 251] * size
        assert array.size <= size * 9 // 8 or size == 100
        seen.append((driver.made, len(driver.blocks)))
    assert seen == [(1, 1), (1, 1), (2, 1), (3, 1), (3, 1)]


@pytest.mark.parametrize("name", ["cuMemHostAlloc", "cuMemcpyAsync", "cuStreamSynchronize"])
def test_where_the_driver_fails_the_bytes_come_the_other_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    driver = Driver()
    staged(monkeypatch, driver)
    held = []
    monkeypatch.setattr("sqlora.train.feed.prefetch", lambda _: held.append(len(driver.blocks)))
    feed = Feed(lambda step: ([batch_of(step)] * (1 + 9 * (step > 4)), [step]), 40, 64_000_000)
    for step in range(40):
        driver.failing = name if step >= 3 else ""
        assert np.array_equal(np.array(feed(step).batches[0].inputs), batch_of(step).inputs)
    assert 3 <= driver.sent < 6
    assert held
    assert not any(held), "what was staged is gone before other memory is made"
    assert capsys.readouterr().err.count("a way that takes it longer (CUDA's driver answers 2)") == 1


@pytest.mark.parametrize("lacks", ["cuStreamCreate", "cuMemHostAlloc", "cuStreamDestroy_v2"])
def test_a_driver_that_lacks_a_function(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lacks: str
) -> None:
    staged(monkeypatch, Driver(lacks))
    feed = Feed(lambda step: ([batch_of(step)], [step]), 3, 64_000_000)
    for step in range(3):
        assert np.array_equal(np.array(feed(step).batches[0].inputs), batch_of(step).inputs)
    assert lacks in capsys.readouterr().err


def test_what_cannot_be_staged(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_staging() is None, "this machine has no CUDA"
    driver = Driver()
    driver.failing = "cuStreamCreate"
    monkeypatch.setattr("sqlora.train.staging.load_driver", lambda: driver)
    with pytest.raises(StagingError, match="answers 2"):
        make_staging()


def slow_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is issued is computed in order, and not before something of it, or behind it, is waited for."""
    queue: list[list[mx.array]] = []
    evaluate = mx.eval

    def later(*given: Any) -> None:
        queue.append([array for _, array in tree_flatten(given)])

    def wait(*given: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            wanted = {id(array) for _, array in tree_flatten(given)}
            ends = [place for place, arrays in enumerate(queue, 1) if wanted & {id(array) for array in arrays}]
            count = max(ends, default=len(queue))
            for arrays in queue[:count]:
                evaluate(arrays)
            del queue[:count]
        evaluate(*given)

    monkeypatch.setattr(mx, "async_eval", later)
    monkeypatch.setattr(mx, "eval", wait)


@pytest.mark.parametrize("together", [1, 2, 5])
def test_no_step_reads_what_a_later_one_was_given(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.chdir(tmp_path)
    as_on_cuda(monkeypatch)
    monkeypatch.setattr("sqlora.train.feed.steps_together", lambda *_, **__: together)
    settings: dict[str, Any] = {"iterations": 13, "report_every": 4, "validate_every": 6, "checkpoint_every": 5}
    with monkeypatch.context() as patch:
        patch.setattr("sqlora.train.feed.make_staging", lambda: None)
        expected = arrays(run(model_folder, **settings))
    fresh_start(tmp_path)
    driver = Driver()
    staged(monkeypatch, driver)
    slow_device(monkeypatch)
    assert equal(expected, arrays(run(model_folder, **settings)))
    assert driver.sent == -(-13 // together)
