"""CUDA kernels for what stands between a layer's matrix products, where MLX needs several operations, and each costs
the host more than the device needs for it.

MLX compiles kernels that it is given as source in every process anew, two seconds each. So this module has NVRTC, the
compiler that MLX brings along, compile kernels.cu: it needs no headers, and the kernels take a tenth of a second each
and attention's way back a whole one.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sqlora.mlx import mx, nn

import numpy as np
from mlx_lm.models.rope_utils import Llama3RoPE
from numpy.typing import NDArray

from sqlora.runtime import has_cuda

CODE = Path(__file__).with_suffix(".cu")
_THREADS = 512  # of a block
_ALONE = 256  # of one whose threads do not share anything
_FEW = 64  # of one of the attention's, whose warps are few
_WARP = 32
_COMPILERS = 4
_TOKENS, _CHUNK = 2, 8  # as in the source
# Attention and adapters are for these kernels up to so many tokens and ranks of a group; with more, MLX's products of
# matrices keep the device busier, and the host has time for them.
MOST_TOKENS = 1024
_MOST_RANK = 32  # as in the source
NAMES = ("norm_low", "norm_back", "turn", "turn_back", "factors_back", "gates_back", "softmax", "softmax_back")
_LIBRARIES = ("libnvrtc.so.13", "libnvrtc.so.12")
_TENSOR_CORES = 80  # the first architecture whose tensor cores have PRODUCTS
SIZES = (64, 128)  # of a head, for which there are attention kernels
_MAJOR, _MINOR = 75, 76  # of CUdevice_attribute: the compute capability

# T by MLX's name of the type, and its way to float and back; a bfloat16 is rounded to the nearest, to even if between.
TYPES = {
    "float32": """
typedef float T;
__device__ inline float get(T x) { return x; }
__device__ inline T put(float x) { return x; }
""",
    "bfloat16": """
typedef unsigned short T;
__device__ inline float get(T x) { return __uint_as_float(unsigned(x) << 16); }
__device__ inline T put(float x) {
    const unsigned bits = __float_as_uint(x);
    return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
""",
    "float16": """
typedef unsigned short T;
__device__ inline float get(T x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x)); return y; }
__device__ inline T put(float x) { T y; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x)); return y; }
""",
}

# Products by the tensor cores, of those types that have them: c += a @ b for 16 x 16 and 16 x 8 numbers, of which each
# thread of a warp holds a part.
PRODUCTS = {
    dtype: f"""
#define MULTIPLY
__device__ inline void multiply(float* c, const unsigned* a, const unsigned* b) {{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.{name}.{name}.f32 "
        "{{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}}
"""
    for dtype, name in (("bfloat16", "bf16"), ("float16", "f16"))
}


Two = tuple[mx.array, mx.array]


@dataclass(frozen=True)
class Kernels:
    """The kernels for an attention's shape.

    dtype: of all arrays but angles and sums; binaries: what NVRTC made of kernels.cu, by kernel; queries, keys: numbers
    of heads; size: of one; turns: (size / 2,) the angle by which each pair of numbers turns from one position to the
    next; scale: of the scores. Of an adapter's factors, first is (rank, inputs) and second (rank, outputs), rank a
    multiple of 8.
    """

    dtype: mx.Dtype
    binaries: Mapping[str, bytes]
    queries: int
    keys: int
    size: int
    turns: NDArray[np.float64]
    scale: float

    def attends(self, shape: tuple[int, int]) -> bool:
        """Whether the attention of a batch, rows and length, is for `attend`."""
        return f"attend_{self.size}" in self.binaries and math.prod(shape) <= MOST_TOKENS

    def adapts(self, shape: tuple[int, int], rank: int) -> bool:
        """Whether an adapter of queries, keys and values is for `norm_low`, `turn` and their ways back."""
        return rank <= _MOST_RANK and math.prod(shape) <= MOST_TOKENS

    def norm_low(self, state: mx.array, weight: mx.array, first: mx.array, eps: float) -> Two:
        """(T, width) -> its RMSNorm, and that @ first.T (T, rank); first: (rank, width)."""
        (rows, width), rank = state.shape, len(first)
        arrays, shapes, numbers = [state, weight, first], [state.shape, (rows, rank)], [rows, width, rank, eps]
        inputs, low = self._run("norm_low", arrays, shapes, _blocks(rows), numbers)
        return inputs, low

    def turn(
        self, heads: mx.array, rows: int, length: int, adapter: Two | None = None
    ) -> tuple[mx.array, mx.array, mx.array]:
        """(T, (queries + 2 * keys) * size) -> query (rows, queries, length, size), and key and value likewise; the
        first two turned by their positions.

        Args:
            adapter: low (T, rank) and second (rank, (queries + 2 * keys) * size): low @ second is added before.
        """
        low, second, rank = _small(adapter, heads)
        shapes = [(rows, count, length, self.size) for count in (self.queries, self.keys, self.keys)]
        numbers = [rows, length, self.queries, self.keys, self.size, rank]
        angles = angles_of(self.turns.tobytes(), length)
        arrays = [heads, angles, low, second]
        query, key, value = self._run("turn", arrays, shapes, _blocks(rows * length), numbers, floats=angles)
        return query, key, value

    def turn_back(
        self, query: mx.array, key: mx.array, value: mx.array, second: mx.array | None = None
    ) -> tuple[mx.array, mx.array]:
        """Gradients of what `turn` gave -> that of its input, and that @ second.T (T, rank), if there is one.

        Of key and value, `attend_back` gives parts to be added up: (rows, parts * keys, length, size).
        """
        rows, _, length, _ = query.shape
        width, rank = (self.queries + 2 * self.keys) * self.size, 0 if second is None else len(second)
        angles = angles_of(self.turns.tobytes(), length)
        arrays = [query, key, value, angles, query if second is None else second]
        numbers = [rows, length, self.queries, self.keys, self.size, rank, key.shape[1] // self.keys]
        shapes = [(rows * length, width), (rows * length, rank) if rank else (1,)]  # MLX may not take an empty one
        heads, reduced = self._run("turn_back", arrays, shapes, _blocks(rows * length), numbers, floats=angles)
        return heads, reduced

    def attend(self, query: mx.array, key: mx.array, value: mx.array, window: int | None) -> Two:
        """What `turn` gave -> the attention's output (T, queries * size), causal and within the window, if any; and the
        logarithm of each query's sum of weights (rows, queries, length) in float32, for `attend_back`.
        """
        rows, _, length, size = query.shape
        shapes = [(rows * length, self.queries * size), (rows, self.queries, length)]
        threads = self._tiles(rows, length) * self.queries * _WARP
        arrays, numbers = [query, key, value], [rows, length, self.queries, self.keys, window or 0, self.scale]
        dtypes = [self.dtype, mx.float32]
        mixed, sums = self._run(f"attend_{size}", arrays, shapes, threads, numbers, dtypes, block=_FEW)
        return mixed, sums

    def attend_back(
        self,
        gradient: mx.array,
        query: mx.array,
        key: mx.array,
        value: mx.array,
        mixed: mx.array,
        sums: mx.array,
        window: int | None,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """The gradient of `attend`'s output, what went in and what came out -> gradients of query, and of key and value
        by the queries' heads, in the shape of query: those of the heads that share a key are to be added up.
        """
        rows, _, length, size = query.shape
        arrays, shapes = [query, key, value, mixed, sums, gradient], [query.shape] * 3
        threads = self._tiles(rows, length) * 3 * self.queries * _WARP
        numbers = [rows, length, self.queries, self.keys, window or 0, self.scale]
        name = f"attend_back_{size}"
        d_query, d_key, d_value = self._run(name, arrays, shapes, threads, numbers, floats=sums, block=_FEW)
        return d_query, d_key, d_value

    @staticmethod
    def _tiles(rows: int, length: int) -> int:
        return rows * -(-length // 16)

    def factors_back(self, inputs: mx.array, reduced: mx.array, low: mx.array, gradient: mx.array) -> mx.array:
        """Gradients of an adapter's factors in one vector: reduced.T @ inputs, and behind it low.T @ gradient."""
        (tokens, inner), outer, rank = inputs.shape, gradient.shape[1], reduced.shape[1]
        blocks = (-(-inner // 64) + -(-outer // 64)) * (rank // _CHUNK)
        arrays, numbers = [inputs, reduced, low, gradient], [tokens, inner, outer, rank]
        return self._run("factors_back", arrays, [(rank * (inner + outer),)], blocks * _THREADS, numbers)[0]

    def softmax(self, scores: mx.array, window: int | None) -> mx.array:
        """Scores (rows, kv heads, repeats * length, length) -> weights, causal and within the window, if any."""
        length = scores.shape[-1]
        rows = scores.size // length
        numbers = [rows, length, window or 0, self.scale]
        return self._run("softmax", [scores], [scores.shape], rows * _WARP, numbers, block=_ALONE)[0]

    def softmax_back(self, weights: mx.array, gradient: mx.array) -> mx.array:
        """The gradient of weights -> that of the scores."""
        length = weights.shape[-1]
        rows = weights.size // length
        arrays = [weights, gradient]
        numbers = [rows, length, self.scale]
        return self._run("softmax_back", arrays, [weights.shape], rows * _WARP, numbers, block=_ALONE)[0]

    def norm_back(
        self,
        state: mx.array,
        weight: mx.array,
        gradient: mx.array,
        rest: mx.array,
        eps: float,
        adapter: Two | None = None,
    ) -> mx.array:
        """rest + the gradient of an RMSNorm's input; all (T, width) but the weight.

        Args:
            adapter: reduced (T, rank) and first (rank, width): reduced @ first is added to the gradient before.
        """
        reduced, first, rank = _small(adapter, gradient)
        arrays, (rows, width) = [state, weight, gradient, rest, reduced, first], state.shape
        return self._run("norm_back", arrays, [state.shape], _blocks(rows), [rows, width, rank, eps])[0]

    def gates_back(self, gradient: mx.array, gates: mx.array) -> mx.array:
        """The gradient (T, inner) of silu(gate) * up -> that of gates (T, 2 * inner), gate and up side by side."""
        rows, inner = gradient.shape
        threads = gradient.size // 4
        return self._run("gates_back", [gradient, gates], [gates.shape], threads, [rows, inner], block=_ALONE)[0]

    def _run(
        self,
        name: str,
        arrays: list[mx.array],
        shapes: Sequence[Sequence[int]],
        threads: int,
        numbers: Sequence[int | float],
        dtypes: Sequence[mx.Dtype] = (),
        floats: mx.array | None = None,
        block: int = _THREADS,
    ) -> list[mx.array]:
        """Call a kernel.

        Args:
            threads: at least so many.
            dtypes: of the outputs; self.dtype if left out.
            floats: the one of the arrays that stays in float32.
            block: threads of one.
        """
        wanted = [array if array is floats else array.astype(self.dtype) for array in arrays]
        results: list[mx.array] = mx.fast.precompiled_cuda_kernel(
            name=name_of(name, str(self.dtype).rpartition(".")[2]),
            compiled_source=self.binaries[name],
            inputs=wanted,
            output_shapes=[tuple(shape) for shape in shapes],
            output_dtypes=list(dtypes) or [self.dtype] * len(shapes),
            # MLX takes no number that it would have to round.
            scalars=[float(np.float32(one)) if isinstance(one, float) else one for one in numbers],
            grid=(-(-threads // block) * block, 1, 1),
            threadgroup=(block, 1, 1),
            ensure_row_contiguous=True,
        )
        return results


def _blocks(tokens: int) -> int:
    """Threads of a kernel whose blocks take several tokens each."""
    return -(-tokens // _TOKENS) * _THREADS


def _small(adapter: Two | None, other: mx.array) -> tuple[mx.array, mx.array, int]:
    """An adapter's parts and its rank; without one, any arrays, of which nothing is read, and 0."""
    return (other, other, 0) if adapter is None else (*adapter, adapter[0].shape[1])


def choose_kernels(attention: Any, size: int, widths: Sequence[int], dtype: mx.Dtype) -> Kernels | None:
    """For a layer's attention as mlx-lm has it; None where there is no CUDA device, or heads are turned otherwise.

    Args:
        size: of a head; widths: of the layer's states, outer and inner.

    Warns where there is one and the kernels cannot be compiled.
    """
    rope, name = attention.rope, str(dtype).rpartition(".")[2]
    if not has_cuda() or mx.default_device().type != mx.DeviceType.gpu or name not in TYPES:
        return None
    if rope.traditional or rope.dims != size or size % 8 or any(width % 4 for width in widths):
        return None
    binaries = compiled(name, size)
    if binaries is None:
        return None
    return Kernels(
        dtype, binaries, attention.n_heads, attention.n_kv_heads, size, turns_of(rope), float(attention.scale)
    )


def turns_of(rope: nn.Module) -> NDArray[np.float64]:
    """Of an nn.RoPE or a Llama3RoPE: each pair's angle at position 1, (dims / 2,)."""
    if isinstance(rope, Llama3RoPE):
        return 1 / np.array(rope._freqs, dtype=np.float64)
    powers = np.arange(0, rope.dims, 2, dtype=np.float64) / rope.dims
    scaled: NDArray[np.float64] = rope.scale * float(rope.base) ** -powers
    return scaled


def angles_of(turns: bytes, length: int) -> mx.array:
    """Sines and cosines of each pair's angle, (positions, 2, size / 2) in float32, for at least so many positions.

    Args:
        turns: the bytes of Kernels.turns; all layers have the same, and the same table.
    """
    return _angles(turns, max(64, 1 << (length - 1).bit_length()))


@cache
def _angles(turns: bytes, positions: int) -> mx.array:
    angles = np.arange(positions)[:, None] * np.frombuffer(turns)
    return mx.array(np.stack([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32))


def name_of(kernel: str, dtype: str) -> str:
    """A kernel's name in the compiled module; MLX knows a module by it, so it is another for each type."""
    return f"sqlora_{kernel}_{dtype}"


def source_of(kernel: str, dtype: str) -> str:
    """CUDA C++ of a kernel for a type of arrays."""
    declare = f'#define USE_{kernel}\n#define KERNEL(name) extern "C" __global__ void sqlora_##name##_{dtype}\n'
    return declare + TYPES[dtype] + PRODUCTS.get(dtype, "") + CODE.read_text(encoding="utf-8")


def names_of(dtype: str, size: int) -> tuple[str, ...]:
    """The kernels that there are for a type of arrays and a size of heads."""
    with_attention = dtype in PRODUCTS and size in SIZES
    return (*NAMES, *((f"attend_{size}", f"attend_back_{size}") if with_attention else ()))


def begin_compiling(dtype: str, size: int) -> None:
    """Begin to compile the kernels for a type, where there is a CUDA device: threads do it meanwhile."""
    if has_cuda() and dtype in TYPES:
        _compiling(dtype, size)


@cache
def compiled(dtype: str, size: int) -> Mapping[str, bytes] | None:
    """The kernels for the device; None, after a warning, if they cannot be compiled."""
    try:
        made = {name: making.result() for name, making in _compiling(dtype, size).items()}
        return {name: binary for name, binary in made.items() if binary is not None}
    except (OSError, RuntimeError, AttributeError) as error:  # the last: a function that this NVRTC lacks
        print(f"warning: no CUDA kernels of sqlora's own ({error}); training goes on, slower", file=sys.stderr)
        return None


@cache
def _compiling(dtype: str, size: int) -> dict[str, Future[bytes | None]]:
    # Each by itself: MLX copies a kernel's module whenever it is called.
    background = ThreadPoolExecutor(max_workers=_COMPILERS)
    names = sorted(names_of(dtype, size), key=lambda name: not name.startswith("attend"))  # the slow ones first
    compiling = {name: background.submit(_compile, name, dtype) for name in names}
    background.shutdown(wait=False)
    return compiling


def _compile(kernel: str, dtype: str) -> bytes | None:
    """None for a device whose tensor cores lack the attention's products."""
    architecture = _architecture()
    if kernel.startswith("attend") and int(architecture.removeprefix("sm_")) < _TENSOR_CORES:
        return None
    return compile_for(source_of(kernel, dtype), architecture)


def compile_for(source: str, architecture: str) -> bytes:
    """What NVRTC makes of a source.

    Args:
        architecture: as NVRTC names it, such as sm_90.

    Raises:
        OSError: there is no NVRTC.
        RuntimeError: it rejects the source; with its log.
    """
    library = _load(_LIBRARIES)
    program = ctypes.c_void_p()
    _check(library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None))
    try:
        options = (ctypes.c_char_p * 1)(f"--gpu-architecture={architecture}".encode())
        if library.nvrtcCompileProgram(program, 1, options):
            log = _text(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program)
            raise RuntimeError(log.rstrip(b"\0").decode(errors="replace").strip())
        return _text(library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN, program)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _text(size_of: Callable[..., int], get: Callable[..., int], program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(size_of(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(get(program, buffer))
    return buffer.raw


def _architecture() -> str:
    """Of the device that MLX computes on; mlx.launch shows each rank one device only."""
    driver = _load(("libcuda.so.1",))
    _check(driver.cuInit(0))
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        _check(driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, 0))
        numbers.append(value.value)
    return f"sm_{numbers[0]}{numbers[1]}"


def _load(names: Sequence[str]) -> ctypes.CDLL:
    for mode in (os.RTLD_NOLOAD | os.RTLD_NOW, os.RTLD_NOW):  # the one that MLX has loaded, before any other
        for name in names:
            with suppress(OSError):
                return ctypes.CDLL(name, mode=mode)
    raise OSError(f"there is no {' and no '.join(names)}")


def _check(code: int) -> None:
    if code:
        raise RuntimeError(f"CUDA's error {code}")
