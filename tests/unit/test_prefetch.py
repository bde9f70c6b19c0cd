"""What a CUDA device is asked to fetch; whether it pays is measured on a GPU (benchmarks/step.py --files)."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

from sqlora.mlx import mx

import numpy as np
import pytest

from sqlora.prefetch import _driver, ask_for, large_places, load_driver, places_of, prefetch


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32, mx.uint8, mx.uint32], ids=str)
def test_the_whole_of_every_large_array_is_asked_for(dtype: mx.Dtype) -> None:
    small, large = mx.arange(8).astype(dtype), mx.random.randint(0, 100, (1200, 1000)).astype(dtype)
    mx.eval(small, large)
    places = large_places([small, large])
    assert len(places) == 1
    address, size = places[0]
    assert size == large.nbytes
    there = np.frombuffer(ctypes.string_at(address, size), dtype=np.uint8)
    assert np.array_equal(there, np.asarray(large.reshape(-1).view(mx.uint8)))


def test_without_cuda_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqlora.prefetch._driver", lambda: None)
    prefetch([mx.zeros((1000, 1000))])
    assert places_of([mx.zeros((1000, 1000))]) == []
    ask_for([(0, 1)])


def test_the_driver_is_asked_for_each_place(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr("sqlora.prefetch._driver", lambda: lambda *one: asked.append(one))
    array = mx.ones((1000, 1000))
    mx.eval(array)
    places = places_of([array, mx.ones(3)])
    assert (len(places), asked) == (1, [])
    prefetch([array])
    assert asked == places


def test_a_thread_that_has_not_used_the_device_gets_its_context(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Driver:
        """CUDA's, as far as it is used, in such a thread."""

        def __init__(self) -> None:
            self.cuMemPrefetchAsync = self.Prefetch()
            self.cuDevicePrimaryCtxRetain, self.cuCtxSetCurrent = self.retain, self.make_current

        class Prefetch:
            def __call__(self, *place: Any) -> int:
                calls.append(place)
                return 0 if "current" in calls else 201

        def retain(self, context: Any, device: int) -> int:
            context._obj.value = 77 + device
            return 0

        def make_current(self, context: ctypes.c_void_p) -> int:
            assert context.value == 77
            calls.append("current")
            return 0

    monkeypatch.setattr("sqlora.prefetch.has_cuda", lambda: True)
    gpu = SimpleNamespace(default_device=lambda: mx.Device(mx.gpu), DeviceType=mx.DeviceType)
    monkeypatch.setattr("sqlora.prefetch.mx", gpu)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver())
    monkeypatch.setattr("sqlora.prefetch.load_driver", load_driver.__wrapped__)
    ask = _driver.__wrapped__()
    assert ask is not None
    ask(4096, 10)
    ask(8192, 20)
    assert calls == [(4096, 10, 0, None), "current", (4096, 10, 0, None), (8192, 20, 0, None)]
