"""Runs sqlora's CUDA kernels on a CPU: each thread of a block goes on until it waits for others, and then the next one.

So what a thread reads before another has written it is never there by chance; every second block begins with its last
thread, for what is read too late. Only what these kernels use is there: indices, shared memory, barriers, and warps
that exchange registers.
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

from sqlora.train.cuda.compiler import MOVES, PRODUCTS, TYPES, name_of, source_of
from sqlora.train.cuda.kernels import BLOCK_THREADS, Kernels

Array = NDArray[np.generic]
THREADS = 512

_DEVICE = """
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <ucontext.h>
#include <vector>
struct Index { unsigned x; };
static Index threadIdx, blockIdx, blockDim;
static ucontext_t scheduler;
static std::vector<ucontext_t> contexts(1024);
static unsigned events;  // so long as there are some, nobody waits for ever
struct Barrier {
    unsigned expected, waiting = 0, phase = 0;
    void arrive_and_wait() {
        const unsigned mine = phase;
        if (++waiting == expected) waiting = 0, phase++, events++;
        while (phase == mine) swapcontext(&contexts[threadIdx.x], &scheduler);
    }
};
static Barrier whole;
static std::vector<Barrier> warps;
static float registers[1024];
struct Copy {
    void* to;
    const void* from;
    unsigned bytes;
};
static std::deque<std::vector<Copy>> copies[1024];  // of each thread, by the ends between them
static void __syncthreads() { whole.arrive_and_wait(); }
static float __shfl_sync(unsigned, float value, int lane) {
    Barrier& warp = warps[threadIdx.x / 32];
    registers[threadIdx.x] = value;
    warp.arrive_and_wait();
    const float other = registers[threadIdx.x / 32 * 32 + lane];
    warp.arrive_and_wait();
    return other;
}
static float __shfl_xor_sync(unsigned all, float value, int mask) {
    return __shfl_sync(all, value, threadIdx.x % 32 ^ mask);
}
static int min(int one, int other) { return one < other ? one : other; }
static int max(int one, int other) { return one > other ? one : other; }
static float rsqrtf(float x) { return 1 / std::sqrt(x); }
static float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
static unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
#define __expf(x) std::exp(float(x))
static float __fdividef(float x, float y) { return x / y; }
#define __launch_bounds__(...)
#define __shared__ static
#define __device__
#define __global__
"""
# In place of what the source says in PTX: a float16's conversions, and products of parts that lie as PTX's manual says.
_FLOAT16 = """
typedef unsigned short T;
static float get(T x) { return std::bit_cast<_Float16>(x); }
static T put(float x) { return std::bit_cast<T>(_Float16(x)); }
"""
_MULTIPLY = """
static unsigned lefts[1024][4], rights[1024][2];
static void multiply(float* c, const unsigned* a, const unsigned* b) {
    const unsigned thread = threadIdx.x, warp = thread / 32 * 32, group = thread % 32 / 4, lane = thread % 4;
    Barrier& all = warps[thread / 32];
    for (int i = 0; i < 4; i++) lefts[thread][i] = a[i];
    for (int i = 0; i < 2; i++) rights[thread][i] = b[i];
    all.arrive_and_wait();
    for (int i = 0; i < 4; i++) {
        const unsigned row = group + (i < 2 ? 0 : 8), column = lane * 2 + i % 2;
        for (unsigned k = 0; k < 16; k++) {
            // Of a: row % 8 and k % 8 / 2 say which thread has it; the next bits, which register; the last, which half.
            const unsigned left = lefts[warp + row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2] >> k % 2 * 16;
            const unsigned right = rights[warp + column * 4 + k % 8 / 2][k / 8] >> k % 2 * 16;
            c[i] += get(T(left)) * get(T(right));
        }
    }
    all.arrive_and_wait();
}
"""
_MOVES = """
static float exp2_of(float x) { return std::exp2(x); }
typedef const T* Place;
static Place place_of(const T* shared) { return shared; }
static void copy(void* to, const void* from, unsigned bytes) {
    if (((size_t)to | (size_t)from) % bytes) std::abort();
    if (blockIdx.x % 2) std::memcpy(to, from, bytes);  // at once, for what still reads what was there
    else copies[threadIdx.x].back().push_back({to, from, bytes});
}
static void copy_eight(Place to, const T* from) { copy((void*)to, from, 16); }
static void copy_one(float* to, const float* from) { copy(to, from, 4); }
static void end_of_copies() { copies[threadIdx.x].emplace_back(); }
// In every other block no sooner than here, for what is read too early.
template <int COUNT> static void await_copies_but() {
    auto& mine = copies[threadIdx.x];
    for (; mine.size() > COUNT + 1; mine.pop_front())
        for (auto [to, from, bytes] : mine.front()) std::memcpy(to, from, bytes);
}
static Place places[1024];
static void read(unsigned* to, Place row, bool turned) {
    const unsigned thread = threadIdx.x, warp = thread / 32 * 32, group = thread % 32 / 4, lane = thread % 4;
    Barrier& all = warps[thread / 32];
    if ((size_t)row % 16) std::abort();
    places[thread] = row;
    all.arrive_and_wait();
    for (unsigned i = 0; i < 4; i++) {
        const Place* rows = places + warp + 8 * i;
        const T one = turned ? rows[lane * 2][group] : rows[group][lane * 2];
        const T other = turned ? rows[lane * 2 + 1][group] : rows[group][lane * 2 + 1];
        to[i] = one | unsigned(other) << 16;
    }
    all.arrive_and_wait();
}
static void read_matrices(unsigned* to, Place row) { read(to, row, false); }
static void read_turned_matrices(unsigned* to, Place row) { read(to, row, true); }
"""
_LAUNCH = """
struct Pointer {
    void* to;
    template <class U> operator U*() const { return (U*)to; }
};
static void** arrays;
static const int* ints;
static const float* floats;
static std::vector<bool> done(1024);
static void begin() {
    CALL;
    done[threadIdx.x] = true, events++;
}
extern "C" int launch(void** all, const int* whole_numbers, const float* others, unsigned blocks, unsigned threads) {
    arrays = all, ints = whole_numbers, floats = others, blockDim.x = threads;
    std::vector<char> stacks(threads << 16);
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) {
        whole = {threads};
        warps.assign(threads / 32, {32});
        for (unsigned number = 0; number < threads; number++) {
            done[number] = false, copies[number].assign(1, {});
            getcontext(&contexts[number]);
            contexts[number].uc_stack.ss_sp = &stacks[number << 16];
            contexts[number].uc_stack.ss_size = 1 << 16;
            contexts[number].uc_link = &scheduler;
            makecontext(&contexts[number], begin, 0);
        }
        for (unsigned before = events - 1; before != events;) {
            before = events;
            for (unsigned place = 0; place < threads; place++) {
                threadIdx.x = blockIdx.x % 2 ? threads - 1 - place : place;
                if (!done[threadIdx.x]) swapcontext(&scheduler, &contexts[threadIdx.x]);
            }
        }
        for (unsigned number = 0; number < threads; number++)
            if (!done[number]) return 1;
    }
    return 0;
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
        dtypes: Sequence[mx.Dtype] = (),
        kept: Sequence[mx.array] = (),
        block: int = BLOCK_THREADS,
    ) -> list[mx.array]:
        done.append(name)
        for one in arrays:
            stays = any(one is other for other in kept)
            assert one.dtype in (mx.float32, mx.int32) if stays else one.dtype == self.dtype
        inputs = [np.array(one.view(mx.uint16) if one.dtype.size == 2 else one) for one in arrays]
        dtype = str(self.dtype).rpartition(".")[2]
        wanted = list(dtypes) or [self.dtype] * len(shapes)
        out = [np.float32 if one == mx.float32 else np.uint16 for one in wanted]
        found = run(name, dtype, inputs, shapes, threads, numbers, scratch, out=out, block=block)
        return [mx.array(array).view(one) for array, one in zip(found, wanted, strict=True)]

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
    out: Sequence[type[np.generic]] = (),
    block: int = THREADS,
) -> list[Array]:
    """The kernel's outputs, of the type of its first input unless `out` is given.

    Args:
        text: a source other than sqlora's own.
        dtype: MLX's name of that type; one of 16 bits is given as uint16.
        shapes, out: of the outputs.
        scratch: a folder for what is compiled.
    """
    arguments = [f"Pointer{{arrays[{place}]}}" for place in range(len(inputs) + len(shapes))]
    arguments += [f"{'floats' if isinstance(number, float) else 'ints'}[{at}]" for at, number in enumerate(numbers)]
    call = f"{name_of(kernel, dtype)}({', '.join(arguments)})"
    text = _without_ptx(text or source_of(kernel, dtype), dtype)
    text = _DEVICE + text + _LAUNCH.replace("CALL", call)
    library = scratch / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.so"
    if not library.exists():
        command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(library)]
        subprocess.run(command, input=text, text=True, check=True)
    arrays = [np.ascontiguousarray(array) for array in inputs]
    types = list(out) or [arrays[0].dtype.type] * len(shapes)
    # What a kernel leaves out is not a number.
    filling = (0xFFFF if one == np.uint16 else np.nan for one in types)
    outputs: list[Array] = [np.full(*each) for each in zip(shapes, filling, types, strict=True)]
    pointers = (ctypes.c_void_p * len(arguments))(*(array.ctypes.data for array in (*arrays, *outputs)))
    ints = (ctypes.c_int * len(numbers))(*(int(number) for number in numbers))
    floats = (ctypes.c_float * len(numbers))(*(float(number) for number in numbers))
    waits = ctypes.CDLL(str(library)).launch(pointers, ints, floats, -(-threads // block), block)
    assert not waits, f"{kernel}: a thread waits for one that has ended"
    return outputs


def _without_ptx(text: str, dtype: str) -> str:
    if dtype in PRODUCTS:
        text = text.replace(PRODUCTS[dtype], _MULTIPLY).replace(MOVES, _MOVES)
    return text.replace(TYPES[dtype], _FLOAT16) if dtype == "float16" else text
