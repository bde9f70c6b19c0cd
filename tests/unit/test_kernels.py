"""The CUDA kernels, run on a CPU, beside MLX's operations."""

from __future__ import annotations

import ctypes
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlora.mlx import mx, nn

import cuda_on_cpu
import numpy as np
import pytest
from mlx_lm.models import llama
from mlx_lm.models.rope_utils import Llama3RoPE

from sqlora.train.attention import attend, attend_back, make_mask
from sqlora.train.cuda import kernels
from sqlora.train.cuda.kernels import (
    Kernels,
    begin_compiling,
    choose_kernels,
    compile_for,
    compiled,
    source_of,
    turns_of,
)
from sqlora.train.layer import normed_back

ROWS, QUERIES, KEYS, SIZE = 2, 4, 2, 8
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


def of(rope: Any, dtype: mx.Dtype = mx.float32) -> Kernels:
    return Kernels(dtype, b"", QUERIES, KEYS, SIZE, turns_of(rope), SCALE)


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

    found = of(rope).turn(flat, ROWS, length)
    for one, other in zip(found, expected(flat), strict=True):
        near(one, other)
    gradients = [random_array(*one.shape, seed=seed) for seed, one in enumerate(found)]
    near(of(rope).turn_back(*gradients), mx.vjp(expected, [flat], gradients)[1][0])


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
@pytest.mark.parametrize("width", [8, 300, 1024])
def test_the_way_back_of_a_norm(width: int) -> None:
    norm = nn.RMSNorm(width, eps=1e-5)
    norm.weight = random_array(width, seed=3)
    state, gradient, rest = (random_array(5, width, seed=seed) for seed in (4, 5, 6))
    found = of(ROPES["plain"]()).norm_back(state, norm.weight, gradient, rest, norm.eps)
    near(found, rest + normed_back(norm, state, gradient), 1e-5)


def put_in_bfloat16(numbers: mx.array, scratch: Path) -> list[int]:
    """By the source's own function, in a kernel around it."""
    text = (
        source_of("bfloat16") + "KERNEL(put)(const float* from, T* to) { to[threadIdx.x] = put(from[threadIdx.x]); }\n"
    )
    shapes, threads = [(cuda_on_cpu.THREADS,)], cuda_on_cpu.THREADS
    padded = np.zeros(threads, dtype=np.float32)
    padded[: numbers.size] = np.array(numbers)
    found = cuda_on_cpu.run("put", "bfloat16", [padded], shapes, threads, [], scratch, text=text, out=np.uint16)
    return [int(one) for one in found[0][: numbers.size]]


@pytest.mark.usefixtures("on_the_cpu")
def test_a_bfloat16_is_the_nearest(scratch: Path) -> None:
    wide = np.random.default_rng(5).standard_normal(2 * KEYS * SIZE).astype(np.float32)
    rounded = mx.array(wide).astype(mx.bfloat16)
    numbers = mx.concatenate([mx.zeros(QUERIES * SIZE, dtype=mx.bfloat16), rounded]).reshape(1, -1)
    _, key, value = of(ROPES["plain"](), mx.bfloat16).turn(numbers, 1, 1)  # at position 0 nothing turns
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
    calls: list[Callable[[], Any]] = [
        lambda: own.turn(heads, 2, 3),
        lambda: own.turn_back(query, key, key),
        lambda: own.softmax(scores, 2),
        lambda: own.softmax_back(scores, scores),
        lambda: own.norm_back(heads, heads[0], heads, heads, 1e-5),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="No CUDA back-end"):
            call()


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_mlx_is_asked_for_enough_threads_and_for_rows_that_lie_in_one_piece(
    monkeypatch: pytest.MonkeyPatch, dtype: mx.Dtype
) -> None:
    asked: list[dict[str, Any]] = []

    def fake(**given: Any) -> list[mx.array]:
        asked.append(given)
        outputs = zip(given["output_shapes"], given["output_dtypes"], strict=True)
        return [mx.zeros(shape, dtype=one) for shape, one in outputs]

    monkeypatch.setattr(mx.fast, "precompiled_cuda_kernel", fake)
    own, state = of(ROPES["plain"](), dtype), random_array(6, (QUERIES + 2 * KEYS) * SIZE).astype(dtype)
    parts = own.turn(state, 2, 3)
    own.turn_back(*parts)
    scores = own.softmax(random_array(2, KEYS, 6, 3).astype(dtype), None)
    own.softmax_back(scores, scores)
    own.norm_back(state, random_array(state.shape[1]), state, state, 1e-5)  # a weight of another type
    kind = "float32" if dtype == mx.float32 else "bfloat16"
    names = [f"sqlora_{name}_{kind}" for name in ("turn", "turn_back", "softmax", "softmax_back", "norm_back")]
    assert [one["name"] for one in asked] == names
    # A thread for two numbers of a head, a warp of 32 for a row of scores, a block of 256 for a row of states.
    for one, threads in zip(asked, [state.size // 2] * 2 + [24 * 32] * 2 + [6 * 256], strict=True):
        assert one["threadgroup"] == (256, 1, 1)
        assert threads <= one["grid"][0] < threads + 256
        assert one["grid"][0] % 256 == 0
        assert one["ensure_row_contiguous"]
        assert {array.dtype for array in one["inputs"] if array is not own.turns} == {dtype}
        assert set(one["output_dtypes"]) == {dtype}


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
    monkeypatch.setattr(kernels, "has_cuda", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(kernels, "_architecture", lambda: "sm_90")
    for function in (kernels._compiling, compiled):
        function.cache_clear()
    yield
    for function in (kernels._compiling, compiled):
        function.cache_clear()


def test_kernels_are_for_cuda_and_for_heads_turned_whole(monkeypatch: pytest.MonkeyPatch, as_on_cuda: None) -> None:
    monkeypatch.setattr(kernels, "compile_for", lambda source, architecture: b"made")
    whole, traditional = attention(), attention()
    traditional.rope = nn.RoPE(SIZE, traditional=True)
    found = choose_kernels(whole, SIZE, mx.bfloat16)
    assert found is not None
    assert (found.binary, found.queries, found.keys, found.scale) == (b"made", QUERIES, KEYS, SCALE)
    assert choose_kernels(whole, 2 * SIZE, mx.bfloat16) is None
    assert choose_kernels(traditional, SIZE, mx.bfloat16) is None
    assert choose_kernels(whole, SIZE, mx.int32) is None
    whole.rope = ROPES["llama 3"]()
    assert choose_kernels(whole, SIZE, mx.bfloat16) is not None
    monkeypatch.setattr(kernels, "has_cuda", lambda: False)
    assert choose_kernels(whole, SIZE, mx.bfloat16) is None


def test_kernels_are_compiled_once_and_meanwhile(monkeypatch: pytest.MonkeyPatch, as_on_cuda: None) -> None:
    made: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def slow(source: str, architecture: str) -> bytes:
        made.append(architecture)
        begun.set()
        assert go_on.wait(10)
        return source.encode()

    monkeypatch.setattr(kernels, "compile_for", slow)
    begin_compiling("float32")
    begin_compiling("float32")
    begin_compiling("int32")  # there are none
    assert begun.wait(10), "it goes on by itself"
    assert kernels._compiling.cache_info().currsize == 1
    go_on.set()
    assert compiled("float32") == compiled("float32") == source_of("float32").encode()
    assert made == ["sm_90"]
    monkeypatch.setattr(kernels, "has_cuda", lambda: False)
    begin_compiling("bfloat16")
    assert kernels._compiling.cache_info().currsize == 1


def test_without_a_compiler_training_goes_on_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_on_cuda: None
) -> None:
    monkeypatch.setattr(kernels, "_LIBRARIES", ("libnvrtc-none.so", "libnvrtc-neither.so"))
    begin_compiling("float32")
    kernels._compiling("float32").result()
    assert not capsys.readouterr().err, "nobody has asked for them yet"
    assert choose_kernels(attention(), SIZE, mx.float32) is None
    assert choose_kernels(attention(), SIZE, mx.float32) is None
    assert (
        capsys.readouterr().err.count(
            "warning: no CUDA kernels of sqlora's own (there is no libnvrtc-none.so and no libnvrtc-neither.so)"
        )
        == 1
    )


def test_the_source_declares_each_kernel_that_is_asked_for() -> None:
    declared = set(re.findall(r"KERNEL\((\w+)\)", kernels.CODE.read_text()))
    asked = set(re.findall(r'self\._run\("(\w+)"', Path(kernels.__file__).read_text()))
    assert declared - {"name"} == asked


def test_every_type_of_the_source_compiles_for_a_gpu() -> None:
    """NVRTC needs no GPU. Loaded from its folder, it is found by its name, as where MLX has loaded it."""
    nvidia = pytest.importorskip("nvidia", reason="NVRTC is for Linux on x86-64")
    for place in nvidia.__path__:
        for library in Path(place).glob("cu13/lib/libnvrtc*.so.13*"):
            ctypes.CDLL(str(library))
    for dtype in kernels.TYPES:
        assert compile_for(source_of(dtype), "sm_90").startswith(b"\x7fELF")
    with pytest.raises(RuntimeError, match="nonsense"):
        compile_for("nonsense", "sm_90")


def test_a_kernel_that_is_not_there_does_not_compile(scratch: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        cuda_on_cpu.run("no_such_kernel", "float32", [np.zeros(1, np.float32)], [(1,)], 1, [], scratch)
