"""CUDA kernels for what stands between a layer's matrix products, where MLX needs several operations, and each costs
the host more than the device needs for it.

MLX compiles kernels that it is given as source in every process anew, two seconds each. So this module has NVRTC, the
compiler that MLX brings along, compile kernels.cu: it needs no headers, and all of it takes a third of a second.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sqlora.mlx import mx, nn

import numpy as np
from mlx_lm.models.rope_utils import Llama3RoPE

from sqlora.runtime import has_cuda

CODE = Path(__file__).with_suffix(".cu")
_THREADS = 256  # of a block
_WARP = 32
_LIBRARIES = ("libnvrtc.so.13", "libnvrtc.so.12")
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


@dataclass(frozen=True)
class Kernels:
    """The kernels for an attention's shape.

    dtype: of all arrays; binary: what NVRTC made of kernels.cu; queries, keys: numbers of heads; size: of one; turns:
    (size / 2,) the angle by which each pair of numbers turns from one position to the next; scale: of the scores.
    """

    dtype: mx.Dtype
    binary: bytes
    queries: int
    keys: int
    size: int
    turns: mx.array
    scale: float

    def turn(self, heads: mx.array, rows: int, length: int) -> tuple[mx.array, mx.array, mx.array]:
        """(T, (queries + 2 * keys) * size) -> query (rows, queries, length, size), and key and value likewise; the
        first two turned by their positions.
        """
        shapes = [(rows, count, length, self.size) for count in (self.queries, self.keys, self.keys)]
        numbers = [rows, length, self.queries, self.keys, self.size]
        query, key, value = self._run("turn", [heads, self.turns], shapes, heads.size // 2, numbers)
        return query, key, value

    def turn_back(self, query: mx.array, key: mx.array, value: mx.array) -> mx.array:
        """Gradients of what `turn` gave -> that of its input."""
        rows, _, length, _ = query.shape
        width = (self.queries + 2 * self.keys) * self.size
        arrays, numbers = [query, key, value, self.turns], [rows, length, self.queries, self.keys, self.size]
        return self._run("turn_back", arrays, [(rows * length, width)], rows * length * width // 2, numbers)[0]

    def softmax(self, scores: mx.array, window: int | None) -> mx.array:
        """Scores (rows, kv heads, repeats * length, length) -> weights, causal and within the window, if any."""
        length = scores.shape[-1]
        rows = scores.size // length
        return self._run("softmax", [scores], [scores.shape], rows * _WARP, [rows, length, window or 0, self.scale])[0]

    def softmax_back(self, weights: mx.array, gradient: mx.array) -> mx.array:
        """The gradient of weights -> that of the scores."""
        length = weights.shape[-1]
        rows = weights.size // length
        arrays = [weights, gradient]
        return self._run("softmax_back", arrays, [weights.shape], rows * _WARP, [rows, length, self.scale])[0]

    def norm_back(self, state: mx.array, weight: mx.array, gradient: mx.array, rest: mx.array, eps: float) -> mx.array:
        """rest + the gradient of an RMSNorm's input; all (T, width) but the weight."""
        arrays, (rows, width) = [state, weight, gradient, rest], state.shape
        return self._run("norm_back", arrays, [state.shape], rows * _THREADS, [width, eps])[0]

    def _run(
        self,
        name: str,
        arrays: list[mx.array],
        shapes: Sequence[Sequence[int]],
        threads: int,
        numbers: Sequence[int | float],
    ) -> list[mx.array]:
        wanted = [array if array is self.turns else array.astype(self.dtype) for array in arrays]
        results: list[mx.array] = mx.fast.precompiled_cuda_kernel(
            name=name_of(name, str(self.dtype).rpartition(".")[2]),
            compiled_source=self.binary,
            inputs=wanted,
            output_shapes=[tuple(shape) for shape in shapes],
            output_dtypes=[self.dtype] * len(shapes),
            # MLX takes no number that it would have to round.
            scalars=[float(np.float32(one)) if isinstance(one, float) else one for one in numbers],
            grid=(-(-threads // _THREADS) * _THREADS, 1, 1),
            threadgroup=(_THREADS, 1, 1),
            ensure_row_contiguous=True,
        )
        return results


def choose_kernels(attention: Any, size: int, dtype: mx.Dtype) -> Kernels | None:
    """For a layer's attention as mlx-lm has it; None where there is no CUDA device, or heads are turned otherwise.

    Warns where there is one and the kernels cannot be compiled.
    """
    rope, name = attention.rope, str(dtype).rpartition(".")[2]
    if not has_cuda() or mx.default_device().type != mx.DeviceType.gpu or name not in TYPES:
        return None
    if rope.traditional or rope.dims != size or rope.dims % 2:
        return None
    binary, turns = compiled(name), turns_of(rope)
    if binary is None:
        return None
    mx.eval(turns)  # or a compiled step computes them each time
    return Kernels(dtype, binary, attention.n_heads, attention.n_kv_heads, size, turns, float(attention.scale))


def turns_of(rope: nn.Module) -> mx.array:
    """Of an nn.RoPE or a Llama3RoPE: each pair's angle at position 1, (dims / 2,) in float32."""
    if isinstance(rope, Llama3RoPE):
        return 1 / rope._freqs
    powers = np.arange(0, rope.dims, 2, dtype=np.float64) / rope.dims
    return mx.array((rope.scale * float(rope.base) ** -powers).astype(np.float32))


def name_of(kernel: str, dtype: str) -> str:
    """A kernel's name in the compiled module; MLX knows a module by it, so it is another for each type."""
    return f"sqlora_{kernel}_{dtype}"


def source_of(dtype: str) -> str:
    """CUDA C++ of all kernels for a type of arrays."""
    declare = f'#define KERNEL(name) extern "C" __global__ void sqlora_##name##_{dtype}\n'
    return declare + TYPES[dtype] + CODE.read_text(encoding="utf-8")


def begin_compiling(dtype: str) -> None:
    """Begin to compile the kernels for a type, where there is a CUDA device: a thread does it meanwhile."""
    if has_cuda() and dtype in TYPES:
        _compiling(dtype)


@cache
def compiled(dtype: str) -> bytes | None:
    """The kernels for the device; None, after a warning, if they cannot be compiled."""
    made = _compiling(dtype).result()
    if isinstance(made, bytes):
        return made
    print(f"warning: no CUDA kernels of sqlora's own ({made}); training goes on, slower", file=sys.stderr)
    return None


@cache
def _compiling(dtype: str) -> Future[bytes | Exception]:
    background = ThreadPoolExecutor(max_workers=1)
    compiling = background.submit(_compile, dtype)
    background.shutdown(wait=False)
    return compiling


def _compile(dtype: str) -> bytes | Exception:
    """The kernels, or why there are none."""
    try:
        return compile_for(source_of(dtype), _architecture())
    except (OSError, RuntimeError, AttributeError) as error:  # the last: a function that this NVRTC lacks
        return error


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
