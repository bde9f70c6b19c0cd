"""Compiles the sources of sqlora's CUDA kernels by NVRTC, the compiler that MLX brings along.

MLX compiles kernels that it is given as source in every process anew, and its own on a machine's first use, three
seconds each, for they include large headers. These need none and take a tenth of a second each, attention's way back
three; threads compile them while the process does other things. What they make is kept where MLX keeps its own.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

from sqlora.runtime import has_cuda

_FOLDER = Path(__file__).parent
_COMPILERS = 4
# By their source, the file of that name behind common.cu. Of attention's there is one for each size of heads.
GENERAL = {"ends": ("rows", "entries", "entries_back"), "layers": ("gated",)}
LAYERS = {
    "layers": ("norm_low", "norm_back", "turn", "turn_back", "factors_back", "gates_back", "softmax", "softmax_back")
}
ATTENTION = ("attend", "attend_means", "attend_back")
SIZES = (64, 128)  # of a head, for which there are attention kernels
_LIBRARIES = ("libnvrtc.so.13", "libnvrtc.so.12")
_TENSOR_CORES = 80  # the first architecture whose tensor cores have PRODUCTS
_DIGEST = 32  # bytes of a SHA-256
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
#if __CUDA_ARCH__ >= 800
__device__ inline T put(float x) { T y; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x)); return y; }
#else
__device__ inline T put(float x) {
    const unsigned bits = __float_as_uint(x);
    return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
#endif
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
__device__ inline void multiply(float* c, const unsigned* a, const unsigned* b) {{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.{name}.{name}.f32 "
        "{{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}}
"""
    for dtype, name in (("bfloat16", "bf16"), ("float16", "f16"))
}

# For the same types: numbers on their way into shared memory while threads go on, until `await_copies_but` has all but
# those before so many last ends of copies; and four matrices of 8 x 8 out of it, of each of which a thread of the warp
# names a row (the first eight those of the first), and holds two numbers of a row, or of a column, where it is turned.
MOVES = """
__device__ inline float exp2_of(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
struct Place {
    unsigned address;
    __device__ Place operator+(int numbers) const { return {address + 2 * numbers}; }
};
__device__ inline Place place_of(const T* shared) {
    Place place;
    asm("{ .reg .u64 x; cvta.to.shared.u64 x, %1; cvt.u32.u64 %0, x; }" : "=r"(place.address) : "l"(shared));
    return place;
}
__device__ inline void copy_eight(Place to, const T* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(to.address), "l"(from) : "memory");
}
__device__ inline void copy_one(float* shared, const float* from) {
    asm volatile("{ .reg .u64 x; cvta.to.shared.u64 x, %0; cp.async.ca.shared.global [x], [%1], 4; }"
        :: "l"(shared), "l"(from) : "memory");
}
__device__ inline void end_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int COUNT> __device__ inline void await_copies_but() {
    asm volatile("cp.async.wait_group %0;" :: "n"(COUNT) : "memory");
}
__device__ inline void read_matrices(unsigned* to, Place row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(row.address));
}
__device__ inline void read_turned_matrices(unsigned* to, Place row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(row.address));
}
"""


def general_names() -> tuple[str, ...]:
    """The kernels that any model can use."""
    return tuple(name for names in GENERAL.values() for name in names)


def layer_names(dtype: str, size: int) -> tuple[str, ...]:
    """Those of layers, for a type of arrays and a size of heads."""
    names = tuple(name for names in LAYERS.values() for name in names)
    return (*names, *(f"{name}_{size}" for name in ATTENTION if dtype in PRODUCTS and size in SIZES))


def name_of(kernel: str, dtype: str) -> str:
    """A kernel's name in the compiled module; MLX knows a module by it, so it is another for each type."""
    return f"sqlora_{kernel}_{dtype}"


@cache
def attends() -> bool:
    """Whether this machine's device has tensor cores for the attention; without a CUDA device, of others: yes."""
    if not has_cuda():
        return True
    try:
        return _has_products(_architecture())
    except (OSError, RuntimeError, AttributeError):
        return False


def file_of(kernel: str) -> Path:
    """Its source."""
    files = {name: file for group in (GENERAL, LAYERS) for file, names in group.items() for name in names}
    return _FOLDER / f"{files.get(kernel, 'attention')}.cu"


def source_of(kernel: str, dtype: str) -> str:
    """CUDA C++ of a kernel for a type of arrays."""
    declare = f"#define USE_{kernel}\n#define BOUNDS\n"
    declare += f'#define KERNEL(name) extern "C" __global__ void BOUNDS sqlora_##name##_{dtype}\n'
    texts = [path.read_text(encoding="utf-8") for path in (_FOLDER / "common.cu", file_of(kernel))]
    return "".join([declare, TYPES[dtype], PRODUCTS.get(dtype, ""), MOVES if dtype in PRODUCTS else "", *texts])


def begin_compiling(dtype: str, size: int) -> None:
    """Have threads compile all kernels for a type and a size of heads, where there is a CUDA device."""
    if has_cuda() and dtype in TYPES:
        slow = [name for name in layer_names(dtype, size) if name.startswith(ATTENTION)]
        for name in (*slow, *general_names(), *layer_names(dtype, size)):
            _compiling(name, dtype)


@cache
def compiled(names: tuple[str, ...], dtype: str) -> Mapping[str, bytes] | None:
    """These kernels for the device, without those that it lacks; None, after a warning, if they cannot be compiled."""
    try:
        made = {name: making.result() for name, making in [(name, _compiling(name, dtype)) for name in names]}
        return {name: binary for name, binary in made.items() if binary is not None}
    except (OSError, RuntimeError, AttributeError) as error:  # the last: a function that this NVRTC lacks
        _warn(str(error))
        return None


@cache
def _warn(error: str) -> None:
    print(f"warning: no CUDA kernels of sqlora's own ({error}); training goes on, slower", file=sys.stderr)


@cache
def _compiling(kernel: str, dtype: str) -> Future[bytes | None]:
    # Each by itself: MLX copies a kernel's module whenever it is called.
    return _background().submit(_compile, kernel, dtype)


@cache
def _background() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=_COMPILERS)


def _compile(kernel: str, dtype: str) -> bytes | None:
    """None for a device whose tensor cores lack the attention's products."""
    architecture = _architecture()
    if kernel.startswith(ATTENTION) and not _has_products(architecture):
        return None
    return kept_or_compiled(source_of(kernel, dtype), architecture)


def kept_or_compiled(source: str, architecture: str) -> bytes:
    """What an earlier process made of a source, or what NVRTC makes of it now, which is kept.

    A file is the binary behind its SHA-256, so that one that is damaged is made again.

    Raises:
        OSError, RuntimeError: as compile_for.
    """
    folder = os.environ.get("MLX_PTX_CACHE_DIR")  # as sqlora.runtime sets it
    if not folder:
        return compile_for(source, architecture)
    library = _load(_LIBRARIES)
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    name = hashlib.sha256(f"{major.value}.{minor.value} {architecture} {source}".encode()).hexdigest()
    path = Path(folder, f"sqlora-{name[:32]}.cubin")
    with suppress(OSError):
        data = path.read_bytes()
        if hashlib.sha256(data[_DIGEST:]).digest() == data[:_DIGEST]:
            return data[_DIGEST:]
    binary = compile_for(source, architecture)
    beside = path.with_name(f"{path.name}-{os.getpid()}")  # several ranks may do the same at the same time
    try:
        beside.write_bytes(hashlib.sha256(binary).digest() + binary)
        os.replace(beside, path)
    except OSError:  # it is compiled again next time
        with suppress(OSError):
            beside.unlink()
    return binary


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
    _check(library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"sqlora.cu", 0, None, None))
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


def _has_products(architecture: str) -> bool:
    return int(architecture.removeprefix("sm_")) >= _TENSOR_CORES


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
