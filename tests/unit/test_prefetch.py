"""What a CUDA device is asked to fetch; whether it pays is measured on a GPU (benchmarks/step.py --files)."""

from __future__ import annotations

import ctypes

from sqlora.mlx import mx

import numpy as np
import pytest

from sqlora.prefetch import ask_for, large_places, places_of, prefetch


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
