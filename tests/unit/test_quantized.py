"""Products with quantized weights on a CPU: the same numbers as MLX's own, and no plain weight stays in memory."""

from __future__ import annotations

import gc
from types import ModuleType
from typing import Any

from sqlora.mlx import mx, nn

import pytest

from sqlora.quantized import dequantizing

OWN = mx.array(0)  # what the fake of MLX's function gives


class Recording(ModuleType):
    """mlx.core, whose own product says that it was asked."""

    def __getattr__(self, name: str) -> Any:
        return getattr(mx, name)

    def quantized_matmul(self, *_: Any, **__: Any) -> mx.array:
        return OWN


@pytest.fixture
def product() -> Any:
    return dequantizing(Recording("recording"))


@pytest.mark.parametrize(("dtype", "most"), [(mx.float32, 1e-5), (mx.bfloat16, 1e-2), (mx.float16, 2e-3)])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("transpose", [True, False])
def test_products_and_gradients_are_those_of_the_plain_weight(
    product: Any, dtype: mx.Dtype, most: float, bits: int, transpose: bool
) -> None:
    mx.random.seed(1)
    weight = mx.random.normal((96, 128)).astype(dtype)
    packed, scales, biases = mx.quantize(weight, group_size=64, bits=bits)
    wide = scales.astype(mx.float32), biases.astype(mx.float32)
    plain = mx.dequantize(packed, *wide, group_size=64, bits=bits)
    rows = mx.random.normal((2, 5, 128 if transpose else 96)).astype(dtype)
    weights = mx.random.normal((2, 5, 96 if transpose else 128)).astype(dtype)

    def loss(rows: mx.array) -> mx.array:
        return (product(rows, packed, scales, biases, transpose, 64, bits) * weights).astype(mx.float32).sum()

    found, gradient = product(rows, packed, scales, biases, transpose, 64, bits), mx.grad(loss)(rows)
    expected = rows.astype(mx.float32) @ (plain.T if transpose else plain)
    expected_gradient = weights.astype(mx.float32) @ (plain if transpose else plain.T)
    assert found.dtype == gradient.dtype == dtype
    for one, other in ((found, expected), (gradient, expected_gradient)):
        assert mx.abs(one.astype(mx.float32) - other).max() <= most * mx.abs(other).max()


def test_few_rows_and_other_kinds_of_weights_are_left_to_mlx(product: Any) -> None:
    packed, scales, biases = mx.quantize(mx.ones((64, 64)), group_size=64, bits=4)
    rows = mx.ones((8, 64))
    assert product(rows[:7], packed, scales, biases, True, 64, 4) is OWN
    assert product(rows, packed, scales, biases, True, 64, 4) is not OWN
    assert product(rows.astype(mx.int32), packed, scales, biases, True, 64, 4) is OWN
    assert product(rows, packed[None], scales[None], biases[None], True, 64, 4) is OWN
    assert product(rows, packed, scales, None, True, 32, 4, "mxfp4") is OWN
    assert product(rows, packed, scales, None, True, 64, 4) is OWN, "which says what is wrong"


def test_mixed_types_give_what_mlx_gives(product: Any) -> None:
    packed, scales, biases = mx.quantize(mx.ones((64, 64)), group_size=64, bits=4)
    for rows, factors in ((mx.bfloat16, mx.float32), (mx.float32, mx.bfloat16), (mx.float16, mx.bfloat16)):
        arguments = packed, scales.astype(factors), biases.astype(factors), True, 64, 4
        few, many = (mx.quantized_matmul(mx.ones((count, 64), dtype=rows), *arguments) for count in (1, 8))
        assert few.dtype == many.dtype == mx.float32


@pytest.mark.skipif(mx.default_device() == mx.gpu, reason="a GPU has MLX's own product")
def test_layers_use_it_and_keep_no_plain_weight_for_the_way_back() -> None:
    layers = [nn.QuantizedLinear(512, 512, bias=False, group_size=64, bits=4) for _ in range(12)]

    def loss(state: mx.array) -> mx.array:
        for layer in layers:
            state = state + 1e-3 * layer(state)
        return state.sum()

    rows = mx.ones((8, 512))
    mx.eval([layer.parameters() for layer in layers], rows)
    gc.collect()
    mx.synchronize()
    limit = mx.set_memory_limit(1)  # nothing is issued ahead
    try:
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(mx.grad(loss)(rows))
    finally:
        mx.set_memory_limit(limit)
    plain = 512 * 512 * 4
    assert plain < mx.get_peak_memory() - before < 3 * plain
