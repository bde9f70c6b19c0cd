"""The CUDA kernels, run on a CPU, beside MLX's operations."""

from __future__ import annotations

import ctypes
import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlora.mlx import mx, nn

import cuda_on_cpu
import numpy as np
import pytest
from mlx_lm.models import llama
from mlx_lm.models.rope_utils import Llama3RoPE

from sqlora.train.attention import attend, attend_back, make_mask
from sqlora.train.cuda import compiler, kernels, layers
from sqlora.train.cuda.compiler import (
    begin_compiling,
    compile_for,
    compiled,
    file_of,
    general_names,
    layer_names,
    source_of,
)
from sqlora.train.cuda.kernels import kernels_for
from sqlora.train.cuda.layers import LayerKernels, angles_of, layer_kernels, parts_of, spans_of, turns_of
from sqlora.train.layer import normed_back

ROWS, QUERIES, KEYS, SIZE = 2, 4, 2, 8
WIDTH = (QUERIES + 2 * KEYS) * SIZE
SCALE = SIZE**-0.5
LLAMA3 = {"factor": 8.0, "original_max_position_embeddings": 64}
ROPES: dict[str, Callable[[], Any]] = {
    "plain": lambda: nn.RoPE(SIZE, base=100.0, scale=0.5),
    "llama 3": lambda: Llama3RoPE(SIZE, base=100.0, scaling_config=LLAMA3),
}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    cuda_on_cpu.use(monkeypatch, scratch)


def random_array(*shape: int, seed: int = 1) -> mx.array:
    return mx.array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def of(rope: Any, dtype: mx.Dtype = mx.float32, size: int = SIZE) -> LayerKernels:
    binaries = dict.fromkeys([*general_names(), *layer_names(str(dtype).rpartition(".")[2], size)], b"")
    return LayerKernels(dtype, binaries, QUERIES, KEYS, size, turns_of(rope), size**-0.5)


def attention_kernels(dtype: mx.Dtype, size: int) -> LayerKernels:
    return of(nn.RoPE(size), dtype, size)


def near(found: Any, expected: mx.array, most: float = 2e-6) -> None:
    np.testing.assert_allclose(np.array(found), np.array(expected), atol=most, rtol=most)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("length", [1, 13])
def test_heads_are_turned_and_turned_back(name: str, length: int) -> None:
    rope = ROPES[name]()
    flat = random_array(ROWS * length, (QUERIES + 2 * KEYS) * SIZE)

    def expected(flat: mx.array) -> list[mx.array]:
        heads = flat.reshape(ROWS, length, -1, SIZE).transpose(0, 2, 1, 3)
        query, key, value = mx.split(heads, [QUERIES, QUERIES + KEYS], axis=1)
        return [rope(query), rope(key), value]

    spans = spans_of(ROWS, length)
    found = of(rope).turn(flat, ROWS, length, spans)
    for one, other in zip(found, expected(flat), strict=True):
        near(one, other)
    gradients = [random_array(*one.shape, seed=seed) for seed, one in enumerate(found)]
    near(of(rope).turn_back(*gradients, spans)[0], mx.vjp(expected, [flat], gradients)[1][0])


@pytest.mark.usefixtures("on_the_cpu")
def test_heads_of_examples_one_after_another_are_turned_by_their_places_in_these() -> None:
    own, flat, lengths = of(ROPES["plain"]()), random_array(12, WIDTH), (4, 1, 7)
    spans = spans_between(lengths)
    found = own.turn(flat, 1, 12, spans)
    parts = [own.turn(part, 1, len(part), spans_of(1, len(part))) for part in mx.split(flat, [4, 5])]
    for one, others in zip(found, zip(*parts, strict=True), strict=True):
        near(one, mx.concatenate(list(others), axis=2))
    back = [own.turn_back(*part, spans_of(1, part[0].shape[2]))[0] for part in parts]
    near(own.turn_back(*found, spans)[0], mx.concatenate(back))


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize(("length", "rank"), [(1, 8), (7, 24)])
def test_an_adapter_is_added_before_heads_are_turned(length: int, rank: int) -> None:
    own = of(ROPES["plain"]())
    flat, second = random_array(ROWS * length, WIDTH), random_array(rank, WIDTH, seed=2)
    low = random_array(ROWS * length, rank, seed=3)
    shape = ROWS, length, spans_of(ROWS, length)
    found, expected = own.turn(flat, *shape, (low, second)), own.turn(flat + low @ second, *shape)
    for one, other in zip(found, expected, strict=True):
        near(one, other, 1e-5)
    heads, reduced = own.turn_back(*found, shape[-1], second)
    near(heads, own.turn_back(*found, shape[-1])[0])
    near(reduced, heads @ second.T, 1e-5)


@pytest.mark.usefixtures("on_the_cpu")
def test_gradients_of_heads_that_share_a_key_are_added_up() -> None:
    own = of(ROPES["plain"]())
    query, key, value = (random_array(ROWS, QUERIES, 5, SIZE, seed=seed) for seed in range(3))
    key_sum, value_sum = (one.reshape(ROWS, KEYS, -1, 5, SIZE).sum(axis=2) for one in (key, value))
    spans = spans_of(ROWS, 5)
    near(own.turn_back(query, key, value, spans)[0], own.turn_back(query, key_sum, value_sum, spans)[0])


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize(
    ("length", "window"),
    [(1, None), (16, None), (37, None), (40, 64), (50, 20), (33, 5), (49, 1), (49, 16), (49, 17), (133, None)]
    + [(100, window) for window in (1, 31, 32, 33, 64, 65)],
)
def test_attention_of_16_bits_is_that_of_mlx(length: int, window: int | None) -> None:
    check_attention(mx.float16, 64, [length] * ROWS, window, 1.5e-3)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("window", [None, 1, 16, 33])
@pytest.mark.parametrize(
    "lengths", [[37, 5, 64, 1, 26], [16, 48, 64, 32], [1] * 20, [3, 130, 1, 1, 15], [200], [63, 65], [15, 17, 100]]
)
def test_attention_of_examples_one_after_another_is_that_of_each(lengths: list[int], window: int | None) -> None:
    check_attention(mx.float16, 64, lengths, window, 1.5e-3)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize(("length", "window"), [(21, None), (100, 33)])
def test_attention_of_larger_heads_is_that_of_mlx(length: int, window: int | None) -> None:
    check_attention(mx.bfloat16, 128, [length, 9, length], window, 1e-2)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize(("dtype", "size", "most"), [(mx.bfloat16, 64, 2e-2), (mx.float16, 128, 2e-3)])
def test_attention_without_shared_keys_is_that_of_mlx(dtype: mx.Dtype, size: int, most: float) -> None:
    check_attention(dtype, size, [33, 33], None, most, replace(attention_kernels(dtype, size), queries=KEYS))


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("blocks", [1, 7])
def test_a_block_adds_up_the_gradients_of_heads_that_share_a_key(monkeypatch: pytest.MonkeyPatch, blocks: int) -> None:
    monkeypatch.setattr(layers, "_ENOUGH_BLOCKS", blocks)
    own = replace(attention_kernels(mx.float16, 64), queries=8)
    for length, window in ((40, 20), (133, None)):
        assert parts_of(ROWS * length, 8, KEYS) == (1 if blocks == 1 or length > 64 else 2)
        check_attention(mx.float16, 64, [length] * ROWS, window, 1.5e-3, own)


def spans_between(lengths: Sequence[int]) -> mx.array:
    """Of examples one after another."""
    ends = np.cumsum(lengths)
    return mx.array(np.stack([np.repeat(ends - lengths, lengths), np.repeat(ends, lengths)]).astype(np.int32))


def check_attention(
    dtype: mx.Dtype,
    size: int,
    lengths: Sequence[int],
    window: int | None,
    most: float,
    own: LayerKernels | None = None,
) -> None:
    """By the kernels, and each example in float32 by MLX: errors are below a share of the largest number."""
    own = own or attention_kernels(dtype, size)
    tokens, spans = sum(lengths), spans_between(lengths)
    inputs = [random_array(1, heads, tokens, size, seed=heads).astype(dtype) for heads in (own.queries, KEYS, KEYS)]
    found, own_kept = attend(*inputs, None, own.scale, own, window, spans)
    assert own_kept.weights is None
    gradient = random_array(*found.shape, seed=9).astype(dtype)
    own_back = list(attend_back(gradient, own_kept, None, own.scale, own, window, spans))
    parts = parts_of(tokens, own.queries, KEYS)
    for place in (1, 2):
        own_back[place] = own_back[place].astype(mx.float32).reshape(1, KEYS, parts, tokens, size).sum(axis=2)
    for start, length in zip(np.cumsum(lengths) - lengths, lengths, strict=True):
        here = slice(int(start), int(start) + length)
        query, key, value = (one[:, :, here].astype(mx.float32) for one in inputs)
        mask = make_mask(length, mx.float32, own.queries // KEYS, window)
        expected, kept = attend(query, key, value, mask, own.scale)
        back = attend_back(gradient[here].astype(mx.float32), kept, mask, own.scale)
        mine = (found[here], *(one[:, :, here] for one in own_back))
        for one, other in zip(mine, (expected, *back), strict=True):
            error = np.abs(np.array(one.astype(mx.float32)) - np.array(other)).max()
            assert error <= most * max(1, np.abs(np.array(other)).max())


@pytest.mark.usefixtures("on_the_cpu")
def test_large_scores_of_16_bits_do_not_overflow() -> None:
    own = attention_kernels(mx.bfloat16, 64)
    query, key, value = (random_array(1, heads, 20, 64).astype(mx.bfloat16) * 1e3 for heads in (QUERIES, KEYS, KEYS))
    mixed, sums = own.attend(query, key, value, spans_of(1, 20), None)
    gradients = own.attend_back(mixed, query, key, value, mixed, sums, spans_of(1, 20), None)
    assert all(np.isfinite(np.array(one.astype(mx.float32))).all() for one in (mixed, sums, *gradients))


@pytest.mark.usefixtures("on_the_cpu")
def test_what_is_hidden_is_hidden_from_scores_far_below_zero() -> None:
    own = attention_kernels(mx.float16, 64)
    query, key = mx.ones((1, QUERIES, 20, 64)) * 8, mx.ones((1, KEYS, 20, 64)) * -60
    value = random_array(1, KEYS, 20, 64)
    mixed, _ = own.attend(*(one.astype(mx.float16) for one in (query, key, value)), spans_of(1, 20), None)
    expected, _ = attend(query, key, value, make_mask(20, mx.float32, QUERIES // KEYS, None), own.scale)
    near(mixed.astype(mx.float32), expected, 2e-3)


@pytest.mark.usefixtures("on_the_cpu")
def test_what_is_no_number_does_not_vanish() -> None:
    own = attention_kernels(mx.float16, 64)
    query, key, value = (mx.ones((1, heads, 20, 64), dtype=mx.float16) for heads in (QUERIES, KEYS, KEYS))
    key[:, :, 7] = mx.nan
    mixed, _ = own.attend(query, key, value, spans_of(1, 20), None)
    assert np.isnan(np.array(mixed)).all(axis=1).tolist() == [False] * 7 + [True] * 13


def test_layers_share_a_table_of_angles() -> None:
    one, other = (of(ROPES["plain"]()) for _ in range(2))
    table = angles_of(one.turns.tobytes(), 65)
    assert table is angles_of(other.turns.tobytes(), 128)
    assert table.shape == (128, 2, SIZE // 2)
    assert angles_of(one.turns.tobytes(), 1).shape[0] == 64
    assert angles_of(one.turns.tobytes(), 129).shape[0] == 256


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize(("tokens", "width", "rank"), [(1, 4, 8), (6, 300, 24), (9, 1028, 8)])
def test_an_adapter_between_norm_and_products(tokens: int, width: int, rank: int) -> None:
    own, norm = of(ROPES["plain"]()), nn.RMSNorm(width, eps=1e-5)
    norm.weight = random_array(width, seed=3)
    state, gradient, rest = (random_array(tokens, width, seed=seed) for seed in (4, 5, 6))
    first = random_array(rank, width, seed=7)
    inputs, low = own.norm_low(state, norm.weight, first, norm.eps)
    near(inputs, norm(state), 1e-5)
    near(low, norm(state) @ first.T, 1e-4)
    reduced = random_array(tokens, rank, seed=9)
    found = own.norm_back(state, norm.weight, gradient, rest, norm.eps, (reduced, first))
    near(found, rest + normed_back(norm, state, gradient + reduced @ first), 1e-4)
    heads = random_array(tokens, WIDTH, seed=10)
    d_first, d_second = mx.split(own.factors_back(inputs, reduced, low, heads), [rank * width])
    near(d_first.reshape(rank, width), reduced.T @ inputs, 1e-4)
    near(d_second.reshape(rank, WIDTH), low.T @ heads, 1e-4)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize(("tokens", "inner"), [(1, 8), (5, 304)])
def test_the_way_back_of_gates(tokens: int, inner: int) -> None:
    gates, gradient = random_array(tokens, 2 * inner) * 3, random_array(tokens, inner, seed=2)

    def gated(both: mx.array) -> mx.array:
        gate, up = mx.split(both, 2, axis=1)
        return nn.silu(gate) * up

    expected = mx.vjp(gated, [gates], [gradient])[1][0]
    near(of(ROPES["plain"]()).gates_back(gradient, gates), expected, 1e-5)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize(("tokens", "inner"), [(1, 8), (5, 304)])
def test_gates_apart_and_side_by_side(tokens: int, inner: int) -> None:
    gate, up = random_array(tokens, inner) * 3, random_array(tokens, inner, seed=2)
    gate[0, 0], gate[0, 1] = -200, 200
    own, expected = of(ROPES["plain"]()), nn.silu(gate) * up
    near(own.gated(gate, up), expected)
    near(own.gated(mx.concatenate([gate, up], axis=1)), expected)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize(("indices", "width"), [([0], 4), ([3, 0, 3, 5, 4], 300)])
def test_rows_by_their_indices(dtype: mx.Dtype, indices: list[int], width: int) -> None:
    """To the bit; the index behind the last row gives zeros."""
    matrix = random_array(5, width).astype(dtype)
    found = of(ROPES["plain"](), dtype).rows(matrix, mx.array(indices, dtype=mx.int32))
    expected = mx.concatenate([matrix, mx.zeros((1, width), dtype=dtype)])[mx.array(indices)]
    assert found.dtype == dtype
    assert mx.array_equal(found, expected)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_entries_of_a_vector_and_the_way_back(dtype: mx.Dtype) -> None:
    own, size = of(ROPES["plain"](), dtype), 600
    vector, scales = random_array(size), random_array(size, seed=2)
    places = np.random.default_rng(3).permutation(700).astype(np.int32)  # those from `size` on are none of the vector's
    found = own.entries(vector, scales, mx.array(places))
    extended = mx.concatenate([vector * scales, mx.zeros(100)]).astype(dtype)
    assert mx.array_equal(found, extended[mx.array(places)])
    back = own.entries_back(found, scales, mx.array(np.argsort(places)[:size].astype(np.int32)))
    assert back.dtype == mx.float32
    assert mx.array_equal(back, extended[:size].astype(mx.float32) * scales)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize(("length", "window"), [(1, None), (31, None), (36, 4096), (36, 36), (36, 33)])
def test_attention_is_that_of_mlx(length: int, window: int | None) -> None:
    query, key, value = (random_array(1, heads, length, SIZE, seed=heads) for heads in (QUERIES, KEYS, KEYS))
    mask, own = make_mask(length, mx.float32, QUERIES // KEYS, window), of(ROPES["plain"]())
    expected, kept = attend(query, key, value, mask, SCALE)
    found, own_kept = attend(query, key, value, None, SCALE, own, window)
    near(found, expected)
    gradient = random_array(*found.shape, seed=9)
    for one, other in zip(
        attend_back(gradient, own_kept, None, SCALE, own), attend_back(gradient, kept, mask, SCALE), strict=True
    ):
        near(one, other, 1e-5)


@pytest.mark.usefixtures("on_the_cpu")
def test_large_scores_do_not_overflow() -> None:
    weights = np.array(of(ROPES["plain"]()).softmax(random_array(1, 1, 40, 40) * 3e4, None))
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("width", [8, 300, 1028])
def test_the_way_back_of_a_norm(width: int) -> None:
    norm = nn.RMSNorm(width, eps=1e-5)
    norm.weight = random_array(width, seed=3)
    state, gradient, rest = (random_array(5, width, seed=seed) for seed in (4, 5, 6))
    found = of(ROPES["plain"]()).norm_back(state, norm.weight, gradient, rest, norm.eps)
    near(found, rest + normed_back(norm, state, gradient), 1e-5)


def put_in_bfloat16(numbers: mx.array, scratch: Path) -> list[int]:
    """By the source's own function, in a kernel around it."""
    own = "KERNEL(put)(const float* from, T* to) { to[threadIdx.x] = put(from[threadIdx.x]); }\n"
    text = source_of("put", "bfloat16") + own
    shapes, threads = [(cuda_on_cpu.THREADS,)], cuda_on_cpu.THREADS
    padded = np.zeros(threads, dtype=np.float32)
    padded[: numbers.size] = np.array(numbers)
    found = cuda_on_cpu.run("put", "bfloat16", [padded], shapes, threads, [], scratch, text=text, out=[np.uint16])
    return [int(one) for one in found[0][: numbers.size]]


@pytest.mark.usefixtures("on_the_cpu")
def test_a_bfloat16_is_the_nearest(scratch: Path) -> None:
    wide = np.random.default_rng(5).standard_normal(2 * KEYS * SIZE).astype(np.float32)
    rounded = mx.array(wide).astype(mx.bfloat16)
    numbers = mx.concatenate([mx.zeros(QUERIES * SIZE, dtype=mx.bfloat16), rounded]).reshape(1, -1)
    _, key, value = of(ROPES["plain"](), mx.bfloat16).turn(numbers, 1, 1, spans_of(1, 1))  # at position 0 nothing turns
    found = mx.concatenate([key.reshape(-1), value.reshape(-1)])
    assert np.array_equal(np.array(found.astype(mx.float32)), np.array(rounded.astype(mx.float32)))
    # Between two of them, above that, below it, and what a wrong rounding would make infinite, or a number again.
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F817FFF, 0x7F7F7FFF, 0x7FC00000], dtype=np.uint32)
    exact = mx.array(bits).view(mx.float32)
    assert put_in_bfloat16(exact, scratch) == [0x3F80, 0x3F82, 0x3F81, 0x3F81, 0x7F7F, 0x7FFF]
    weights = random_array(1, 1, 5, 5, seed=6)
    exact = of(ROPES["plain"]()).softmax(weights.astype(mx.bfloat16).astype(mx.float32), None)
    found = of(ROPES["plain"](), mx.bfloat16).softmax(weights.astype(mx.bfloat16), None)
    assert np.array_equal(np.array(found.view(mx.uint16)), np.array(exact.astype(mx.bfloat16).view(mx.uint16)))


@pytest.mark.skipif(mx.cuda.is_available(), reason="there they would run; tests/ has no GPU")
def test_mlx_takes_what_the_kernels_are_called_with() -> None:
    """MLX looks at the arguments before it misses the GPU: it refuses a number that is no exact float32, for one."""
    own, heads = of(ROPES["plain"]()), random_array(6, (QUERIES + 2 * KEYS) * SIZE)
    query, key, scores = random_array(2, QUERIES, 3, SIZE), random_array(2, KEYS, 3, SIZE), random_array(2, KEYS, 6, 3)
    small, factors = random_array(6, 8), random_array(8, WIDTH)
    wide, mixed = attention_kernels(mx.bfloat16, 64), random_array(6, QUERIES * 64).astype(mx.bfloat16)
    queries, keys = (random_array(1, heads, 6, 64).astype(mx.bfloat16) for heads in (QUERIES, KEYS))
    spans = spans_of(2, 3)
    calls: list[Callable[[], Any]] = [
        lambda: own.turn(heads, 2, 3, spans),
        lambda: own.turn_back(query, key, key, spans),
        lambda: own.softmax(scores, 2),
        lambda: own.softmax_back(scores, scores),
        lambda: own.norm_back(heads, heads[0], heads, heads, 1e-5),
        lambda: own.turn(heads, 2, 3, spans, (small, factors)),
        lambda: own.turn_back(query, key, key, spans, factors),
        lambda: own.norm_low(heads, heads[0], factors, 1e-5),
        lambda: own.norm_back(heads, heads[0], heads, heads, 1e-5, (small, factors)),
        lambda: own.factors_back(heads, small, small, heads),
        lambda: own.gates_back(heads, mx.concatenate([heads, heads], axis=1)),
        lambda: own.gated(heads),
        lambda: own.rows(heads, mx.array([6, 0], dtype=mx.int32)),
        lambda: own.entries(heads[0], heads[0], mx.array([1], dtype=mx.int32)),
        lambda: own.entries_back(heads[0], heads[0], mx.zeros(WIDTH, dtype=mx.int32)),
        lambda: wide.attend(queries, keys, keys, spans, None),
        lambda: wide.attend_back(mixed, queries, keys, keys, mixed, mx.zeros((QUERIES, 6)), spans, 2),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="No CUDA back-end"):
            call()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What MLX is asked for from now on; it gives zeros."""
    calls: list[dict[str, Any]] = []

    def fake(**given: Any) -> list[mx.array]:
        calls.append(given)
        outputs = zip(given["output_shapes"], given["output_dtypes"], strict=True)
        return [mx.zeros(shape, dtype=one) for shape, one in outputs]

    monkeypatch.setattr(mx.fast, "precompiled_cuda_kernel", fake)
    return calls


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_mlx_is_asked_for_enough_threads_and_for_rows_that_lie_in_one_piece(
    asked: list[dict[str, Any]], dtype: mx.Dtype
) -> None:
    own, state = of(ROPES["plain"](), dtype), random_array(6, WIDTH).astype(dtype)
    small, factors = random_array(6, 16).astype(dtype), random_array(16, WIDTH)  # of another type
    vector, indices = random_array(257), mx.zeros(17, dtype=mx.int32)
    expected = {
        "turn": (3, 512, lambda: own.turn(state, 2, 3, spans_of(2, 3))),  # a block for two tokens
        "turn_back": (3, 512, lambda: own.turn_back(*own.turn(state, 2, 3, spans_of(2, 3)), spans_of(2, 3))),
        "norm_low": (3, 512, lambda: own.norm_low(state, random_array(WIDTH), factors, 1e-5)),
        "norm_back": (3, 512, lambda: own.norm_back(state, random_array(WIDTH), state, state, 1e-5)),
        # For each eight of the rank, one for 64 columns of the inputs or the gradient.
        "factors_back": (2 * 2, 512, lambda: own.factors_back(state, small, small, state)),
        "gates_back": (
            2,
            256,
            lambda: own.gates_back(mx.zeros((6, 400)), mx.zeros((6, 800))),
        ),  # a thread for eight columns
        "gated": (2, 256, lambda: own.gated(mx.zeros((6, 800)))),  # of two times 400 columns
        "rows": (2, 256, lambda: own.rows(state, indices)),  # 17 rows of 64 columns
        "entries": (2, 256, lambda: own.entries(vector, vector, mx.zeros(257, dtype=mx.int32))),
        "entries_back": (2, 256, lambda: own.entries_back(state[0], vector, mx.zeros(257, dtype=mx.int32))),
        "softmax": (3, 256, lambda: own.softmax(random_array(2, KEYS, 6, 3), None)),  # a warp for a row of scores
        "softmax_back": (3, 256, lambda: own.softmax_back(mx.zeros((2, KEYS, 6, 3)), mx.zeros((2, KEYS, 6, 3)))),
    }
    kind = "float32" if dtype == mx.float32 else "bfloat16"
    # What is of a type of its own, whatever the model's.
    others = {
        "turn": [mx.float32, mx.int32],
        "turn_back": [mx.float32, mx.int32],
        "rows": [mx.int32],
        "entries_back": [mx.float32, mx.int32],
    }
    others["entries"] = [mx.float32, mx.float32, mx.int32]
    for name, (blocks, threads, call) in expected.items():
        call()
        one = asked[-1]
        assert one["name"] == f"sqlora_{name}_{kind}"
        assert (one["grid"], one["threadgroup"]) == ((blocks * threads, 1, 1), (threads, 1, 1))
        assert one["ensure_row_contiguous"]
        found = [array.dtype for array in one["inputs"]]
        for other in others.get(name, []):
            found.remove(other)
        assert set(found) <= {dtype}
        assert set(one["output_dtypes"]) == {mx.float32 if name == "entries_back" else dtype}


def test_mlx_is_asked_for_a_block_for_64_rows_of_a_head(asked: list[dict[str, Any]]) -> None:
    own = attention_kernels(mx.float16, 128)
    query, key = (random_array(1, heads, 3 * 65, 128).astype(mx.float16) for heads in (QUERIES, KEYS))
    mixed, sums = own.attend(query, key, key, spans_of(3, 65), None)
    assert (mixed.shape, mixed.dtype) == ((3 * 65, QUERIES * 128), mx.float16)
    assert (sums.shape, sums.dtype) == ((QUERIES, 3 * 65), mx.float32)
    own.attend_back(mixed, query, key, key, mixed, sums, spans_of(3, 65), None)
    blocks = 4 * QUERIES  # four for 195 rows
    columns = 3 * 65 * QUERIES * 128  # of the output, of which a thread takes eight
    assert [one["grid"][0] for one in asked] == [blocks * 128, -(-columns // 8 // 128) * 128, 3 * blocks * 128]
    assert [one["threadgroup"] for one in asked] == [(128, 1, 1)] * 3
    assert [array.dtype for array in asked[1]["inputs"]] == [mx.float16] * 2
    kinds = [mx.float16] * 3 + [mx.int32] + [mx.float32] * 2 + [mx.float16]
    assert [array.dtype for array in asked[2]["inputs"]] == kinds


def test_gradients_of_keys_are_in_parts_while_there_are_few_blocks(asked: list[dict[str, Any]]) -> None:
    own = replace(attention_kernels(mx.float16, 128), queries=24, keys=4)
    # 4 heads of keys, a block for up to 64 rows of each.
    blocks = 1, 42, 43, 63, 64, 127, 128
    assert [parts_of(64 * count, 24, 4) for count in blocks] == [6, 6, 3, 3, 2, 2, 1]
    assert parts_of(64 * 127 + 1, 24, 4) == 1
    query, key = (mx.zeros((1, heads, 43 * 64, 128), dtype=mx.float16) for heads in (24, 4))
    spans = spans_of(43, 64)
    found = own.attend_back(mx.zeros((43 * 64, 24 * 128)), query, key, key, query, mx.zeros((24, 43 * 64)), spans, None)
    assert [one.shape[1] for one in found] == [24, 12, 12]
    assert asked[-1]["grid"][0] == 43 * (24 + 2 * 12) * 128


def test_many_tokens_and_large_ranks_are_for_products() -> None:
    own = attention_kernels(mx.bfloat16, 128)
    assert own.attends
    assert not of(ROPES["plain"]()).attends, "there is none for the size"
    assert own.adapts((4, 128), 32)
    assert not own.adapts((4, 129), 32)
    assert not own.adapts((1, 1), 40)


def attention() -> Any:
    return llama.Attention(
        llama.ModelArgs(
            model_type="llama",
            hidden_size=QUERIES * SIZE,
            num_hidden_layers=1,
            intermediate_size=8,
            num_attention_heads=QUERIES,
            num_key_value_heads=KEYS,
            rms_norm_eps=1e-5,
            vocab_size=8,
        )
    )


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MLX_PTX_CACHE_DIR", raising=False)
    for module in (compiler, kernels):
        monkeypatch.setattr(module, "has_cuda", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(compiler, "_architecture", lambda: "sm_90")
    for function in (compiler._compiling, compiled, compiler._warn):
        function.cache_clear()
    yield
    compiler._background().shutdown()
    for function in (compiler._background, compiler._compiling, compiled, compiler._warn):
        function.cache_clear()


@pytest.fixture
def nvrtc() -> None:
    """NVRTC, which needs no GPU. Loaded from its folder, it is found by its name, as where MLX has loaded it."""
    nvidia = pytest.importorskip("nvidia", reason="NVRTC is for Linux on x86-64")
    for place in nvidia.__path__:
        for library in Path(place).glob("cu13/lib/libnvrtc*.so.13*"):
            ctypes.CDLL(str(library))


def test_kernels_are_for_cuda_and_for_heads_turned_whole(monkeypatch: pytest.MonkeyPatch, as_on_cuda: None) -> None:
    monkeypatch.setattr(compiler, "compile_for", lambda source, architecture: b"made")
    widths = (32, 8)
    whole, traditional = attention(), attention()
    traditional.rope = nn.RoPE(SIZE, traditional=True)
    found = layer_kernels(whole, SIZE, widths, mx.bfloat16)
    assert found is not None
    assert (found.queries, found.keys, found.scale) == (QUERIES, KEYS, SCALE)
    assert found.binaries == dict.fromkeys([*general_names(), *layer_names("bfloat16", SIZE)], b"made")
    assert layer_kernels(whole, SIZE, (32, 12), mx.bfloat16) is None, "threads take eight numbers at once"
    assert kernels_for(mx.bfloat16, (12,)) is None
    assert kernels_for(mx.int32, widths) is None
    general = kernels_for(mx.bfloat16, widths)
    assert general is not None
    assert general.binaries == dict.fromkeys(general_names(), b"made")
    assert layer_kernels(whole, 2 * SIZE, widths, mx.bfloat16) is None
    assert layer_kernels(traditional, SIZE, widths, mx.bfloat16) is None
    assert layer_kernels(whole, SIZE, widths, mx.int32) is None
    whole.rope = ROPES["llama 3"]()
    assert layer_kernels(whole, SIZE, widths, mx.bfloat16) is not None
    monkeypatch.setattr(kernels, "has_cuda", lambda: False)
    assert layer_kernels(whole, SIZE, widths, mx.bfloat16) is None


def test_kernels_are_compiled_once_and_meanwhile(monkeypatch: pytest.MonkeyPatch, as_on_cuda: None) -> None:
    made: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def slow(source: str, architecture: str) -> bytes:
        made.append(architecture)
        begun.set()
        assert go_on.wait(10)
        return source.encode()

    monkeypatch.setattr(compiler, "compile_for", slow)
    begin_compiling("bfloat16", 64)
    begin_compiling("bfloat16", 64)
    begin_compiling("int32", 64)  # there are none
    assert begun.wait(10), "it goes on by itself"
    names = [*general_names(), *layer_names("bfloat16", 64)]
    assert compiler._compiling.cache_info().currsize == len(names)
    go_on.set()
    for some in (general_names(), layer_names("bfloat16", 64)):
        assert compiled(some, "bfloat16") == {name: source_of(name, "bfloat16").encode() for name in some}
        assert compiled(some, "bfloat16") is compiled(some, "bfloat16")
    assert made == ["sm_90"] * len(names)
    monkeypatch.setattr(compiler, "has_cuda", lambda: False)
    begin_compiling("bfloat16", 128)
    assert compiler._compiling.cache_info().currsize == len(names)


def test_what_is_wanted_first_does_not_wait_for_the_rest(monkeypatch: pytest.MonkeyPatch, as_on_cuda: None) -> None:
    """A frozen pass wants the general kernels at once; those of attention take long, and keep some threads busy."""
    go_on = threading.Event()

    def slow(source: str, architecture: str) -> bytes:
        if "attend" in source.splitlines()[0]:
            go_on.wait(60)
        return b"made"

    monkeypatch.setattr(compiler, "compile_for", slow)
    begin_compiling("bfloat16", 64)
    try:
        waiting = wait([compiler._compiling(name, "bfloat16") for name in general_names()], timeout=10).not_done
        assert not waiting
    finally:
        go_on.set()


def test_what_was_compiled_is_kept_for_other_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nvrtc: None
) -> None:
    made: list[str] = []
    plain = compiler.compile_for

    def noted(source: str, architecture: str) -> bytes:
        made.append(architecture)
        return plain(source, architecture)

    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(compiler, "compile_for", noted)
    monkeypatch.setenv("MLX_PTX_CACHE_DIR", str(tmp_path))
    source = source_of("gated", "bfloat16")
    binary = compiler.kept_or_compiled(source, "sm_90")
    assert binary.startswith(b"\x7fELF")
    (first,) = tmp_path.iterdir()
    assert compiler.kept_or_compiled(source, "sm_90") == binary
    assert made == ["sm_90"]
    compiler.kept_or_compiled(source, "sm_80")
    compiler.kept_or_compiled(source + "\n", "sm_90")
    assert made == ["sm_90", "sm_80", "sm_90"], "another device and another source have files of their own"
    for damage in (first.read_bytes()[:-1], b""):
        first.write_bytes(damage)
        assert compiler.kept_or_compiled(source, "sm_90") == binary
    assert len(made) == 5
    assert len(list(tmp_path.iterdir())) == 3, "nothing is left beside"
    first.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(compiler.os, "replace", full)
        assert compiler.kept_or_compiled(source, "sm_90") == binary
    assert len(list(tmp_path.iterdir())) == 2, "nor here"
    monkeypatch.setenv("MLX_PTX_CACHE_DIR", str(tmp_path / "none"))
    assert compiler.kept_or_compiled(source, "sm_90") == binary, "there is no room to keep it"


def test_an_older_device_has_the_kernels_without_attention(monkeypatch: pytest.MonkeyPatch, as_on_cuda: None) -> None:
    monkeypatch.setattr(compiler, "compile_for", lambda source, architecture: architecture.encode())
    assert compiler.attends.__wrapped__() is True
    monkeypatch.setattr(compiler, "_architecture", lambda: "sm_75")
    assert compiler.attends.__wrapped__() is False
    names = layer_names("float16", 64)
    assert compiled(names, "float16") == dict.fromkeys([name for name in names if "attend" not in name], b"sm_75")
    monkeypatch.setattr(compiler, "_architecture", lambda: "sm_120")
    names = layer_names("float16", 128)
    assert set(compiled(names, "float16") or ()) == set(names)
    assert {"attend_128", "attend_back_128"} <= set(names)


def test_without_a_compiler_training_goes_on_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_on_cuda: None
) -> None:
    monkeypatch.setattr(compiler, "_LIBRARIES", ("libnvrtc-none.so", "libnvrtc-neither.so"))
    begin_compiling("float32", SIZE)
    wait([compiler._compiling(name, "float32") for name in general_names()])
    assert not capsys.readouterr().err, "nobody has asked for them yet"
    assert layer_kernels(attention(), SIZE, (32, 8), mx.float32) is None
    assert layer_kernels(attention(), SIZE, (32, 8), mx.float32) is None
    assert (
        capsys.readouterr().err.count(
            "warning: no CUDA kernels of sqlora's own (there is no libnvrtc-none.so and no libnvrtc-neither.so)"
        )
        == 1
    )


def test_each_source_declares_the_kernels_that_are_looked_for_in_it() -> None:
    folder = Path(compiler.__file__).parent
    texts = {path: path.read_text() for path in folder.glob("*.cu")}
    declared: dict[Path, set[str]] = {}
    for path, text in texts.items():
        declared[path] = set(re.findall(r"^KERNEL\((\w+)\)\(", text, re.M))
        declared[path] |= set(re.findall(r"#ifdef USE_(attend\w+)", text))
        assert set(re.findall(r"#ifdef USE_(\w+)", text)) == declared[path]
    wanted: dict[Path, set[str]] = {}
    for name in (*general_names(), *layer_names("bfloat16", 64), *layer_names("float16", 128)):
        wanted.setdefault(file_of(name), set()).add(name)
    assert wanted == {path: names for path, names in declared.items() if names}
    assert {path.name for path in texts} - {path.name for path in wanted} == {"common.cu"}
    called = set()
    for module in (kernels, layers):
        called |= set(re.findall(r'self\._(?:run|shared)\("(\w+)"', Path(module.__file__).read_text()))
    assert called == {*general_names(), *layer_names("float32", 64)}


def test_the_source_has_the_sizes_that_are_counted_with() -> None:
    text = file_of("turn").read_text()
    for name, value in (
        ("TOKENS", layers._TOKENS),
        ("CHUNK", layers._CHUNK),
        ("MOST_RANK", layers._MOST_RANK),
        ("WARPS", layers._THREADS // 32),
    ):
        assert re.search(rf"const int {name} = {value};", text), name
    assert f"const int THREADS = {layers._ATTENTION_THREADS};" in file_of("attend_64").read_text()
    assert layers._OWN == layers._ATTENTION_THREADS // 32 * 16, "as OWN there"


def test_every_type_of_the_source_compiles_for_a_gpu(nvrtc: None) -> None:
    for dtype in compiler.TYPES:
        for name in {*general_names(), *layer_names(dtype, 64), *layer_names(dtype, 128)}:
            older = "sm_80" if name.startswith("attend") else "sm_75"
            architecture = older if dtype == "float16" else "sm_90"
            assert compile_for(source_of(name, dtype), architecture).startswith(b"\x7fELF")
    with pytest.raises(RuntimeError, match="nonsense"):
        compile_for("nonsense", "sm_90")


def test_a_kernel_that_is_not_there_does_not_compile(scratch: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        cuda_on_cpu.run("no_such_kernel", "float32", [np.zeros(1, np.float32)], [(1,)], 1, [], scratch)
