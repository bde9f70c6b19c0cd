"""Runs sqlora's CUDA kernels on a CPU: each thread of a block is a thread, and the blocks come one after the other.

Only what these kernels use is there: indices, shared memory, barriers, and warps that exchange registers.
"""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

from sqlora.mlx import mx

import numpy as np
import pytest
from numpy.typing import NDArray

from sqlora.train.cuda.kernels import Kernels, name_of, source_of

Array = NDArray[np.generic]
THREADS = 256

_DEVICE = """
#include <barrier>
#include <bit>
#include <cmath>
#include <thread>
#include <vector>
struct Index { unsigned x; };
static thread_local Index threadIdx, blockIdx;
static Index blockDim;
static std::barrier<>* whole;
static std::vector<std::barrier<>*> warps;
static float registers[1024];
static void __syncthreads() { whole->arrive_and_wait(); }
static float __shfl_xor_sync(unsigned, float value, int mask) {
    auto& warp = *warps[threadIdx.x / 32];
    registers[threadIdx.x] = value;
    warp.arrive_and_wait();
    const float other = registers[threadIdx.x ^ mask];
    warp.arrive_and_wait();
    return other;
}
static float rsqrtf(float x) { return 1 / std::sqrt(x); }
static float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
static unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
#define __shared__ static
#define __device__ static
#define __global__
"""
_LAUNCH = """
struct Pointer {
    void* to;
    template <class U> operator U*() const { return (U*)to; }
};
extern "C" void launch(void** arrays, const int* ints, const float* floats, unsigned blocks, unsigned threads) {
    blockDim.x = threads;
    for (unsigned block = 0; block < blocks; block++) {
        whole = new std::barrier<>(threads);
        for (unsigned warp = 0; warp < threads / 32; warp++) warps.push_back(new std::barrier<>(32));
        std::vector<std::thread> all;
        for (unsigned number = 0; number < threads; number++)
            all.emplace_back([=] { threadIdx.x = number; blockIdx.x = block; CALL; });
        for (auto& one : all) one.join();
        for (auto* warp : warps) delete warp;
        warps.clear();
        delete whole;
    }
}
"""


def use(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> list[str]:
    """Have `Kernels` run here; returns the names of those that have run, as they come."""
    done: list[str] = []

    def here(
        self: Kernels,
        name: str,
        arrays: list[mx.array],
        shapes: Sequence[Sequence[int]],
        threads: int,
        numbers: Sequence[int | float],
    ) -> list[mx.array]:
        done.append(name)
        inputs = [np.array(one.view(mx.uint16) if one.dtype == mx.bfloat16 else one) for one in arrays]
        dtype = str(self.dtype).rpartition(".")[2]
        return [mx.array(one).view(self.dtype) for one in run(name, dtype, inputs, shapes, threads, numbers, scratch)]

    monkeypatch.setattr(Kernels, "_run", here)
    return done


def run(
    kernel: str,
    dtype: str,
    inputs: Sequence[Array],
    shapes: Sequence[Sequence[int]],
    threads: int,
    numbers: Sequence[int | float],
    scratch: Path,
    *,
    text: str | None = None,
    out: type[np.generic] | None = None,
) -> list[Array]:
    """The kernel's outputs, of the type of its first input unless `out` is given.

    Args:
        text: a source other than sqlora's own.
        dtype: MLX's name of that type; a bfloat16 is given as uint16.
        shapes: of the outputs.
        scratch: a folder for what is compiled.
    """
    arguments = [f"Pointer{{arrays[{place}]}}" for place in range(len(inputs) + len(shapes))]
    arguments += [f"{'floats' if isinstance(number, float) else 'ints'}[{at}]" for at, number in enumerate(numbers)]
    call = f"{name_of(kernel, dtype)}({', '.join(arguments)})"
    text = _DEVICE + (text or source_of(dtype)) + _LAUNCH.replace("CALL", call)
    library = scratch / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.so"
    if not library.exists():
        command = ["g++", "-std=c++20", "-shared", "-fPIC", "-pthread", "-x", "c++", "-", "-o", str(library)]
        subprocess.run(command, input=text, text=True, check=True)
    arrays = [np.ascontiguousarray(array) for array in inputs]
    outputs: list[Array] = [np.zeros(shape, dtype=out or arrays[0].dtype) for shape in shapes]
    pointers = (ctypes.c_void_p * len(arguments))(*(array.ctypes.data for array in (*arrays, *outputs)))
    ints = (ctypes.c_int * len(numbers))(*(int(number) for number in numbers))
    floats = (ctypes.c_float * len(numbers))(*(float(number) for number in numbers))
    ctypes.CDLL(str(library)).launch(pointers, ints, floats, -(-threads // THREADS), THREADS)
    return outputs
