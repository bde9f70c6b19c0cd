from __future__ import annotations

from sqlora.mlx import mx

import numpy as np
import pytest

from sqlora.train.exponential import _nothing, exp, sigmoid, softmax


def test_exp_is_right_to_three_in_ten_million() -> None:
    numbers = np.concatenate(
        [np.linspace(-87, 88, 200_001), np.linspace(-1, 1, 100_001), np.arange(-126, 127) * np.log(2)]
    )
    numbers = numbers.astype(np.float32)
    numbers = numbers[(numbers >= -87) & (numbers <= 88)]
    right = np.exp(numbers.astype(np.float64))
    assert np.abs(np.array(exp(mx.array(numbers))) / right - 1).max() < 3e-7


def test_exp_of_what_is_out_of_range_is_next_to_nothing_or_huge() -> None:
    found = np.array(exp(mx.array([-np.inf, -1e9, 1e9])))
    assert (found[:2] < 2e-38).all()
    assert (found[:2] >= 0).all()
    assert found[2] > 1e38


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_sigmoid_and_softmax_are_those_of_mlx(dtype: mx.Dtype) -> None:
    rows = (mx.random.normal((50, 70), key=mx.random.key(1)) * 8).astype(dtype)
    rows = mx.concatenate([rows, mx.full((50, 3), -mx.inf, dtype=dtype)], axis=1)
    assert mx.abs(sigmoid(rows) - mx.sigmoid(rows)).max().item() < 1e-6
    found = softmax(rows)
    assert mx.abs(found - mx.softmax(rows, axis=-1, precise=True)).max().item() < 1e-6
    assert found[:, 70:].max().item() == 0
    assert found.dtype == dtype


@pytest.mark.parametrize("compiled", [False, True])
def test_no_weight_of_a_softmax_is_subnormal(*, compiled: bool) -> None:
    _nothing.cache_clear()
    rows = mx.random.normal((200, 300), key=mx.random.key(2)) * mx.linspace(1, 30, 200)[:, None]
    rows = mx.where(mx.arange(300) < mx.arange(200)[:, None] + 1, rows, -mx.inf)
    weights = np.array((mx.compile(softmax) if compiled else softmax)(rows))
    assert ((weights == 0) | (weights > 1e-36)).all()
    assert 0.6 < (weights == 0).mean() < 0.95
    assert np.allclose(weights.sum(axis=1), 1, atol=1e-5)
    assert np.abs(weights - np.array(mx.softmax(rows, axis=-1, precise=True))).max() < 1e-6
