"""Where MLX computes, and the fast BLAS that takes the place of its reference BLAS on a Linux CPU.

MLX's Linux wheel links the reference BLAS, which does about 5 GFLOP/s on two cores. The dynamic linker resolves its
`sgemm_` to the first library that offers the name, so a fast BLAS loaded globally before MLX takes over: the
libtorch_cpu.so that requirements.txt installs (it holds MKL), or else OpenBLAS.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import os
import sys
import warnings
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True)
class Blas:
    """name: for people; path: of the library, or None where MLX's own is in use."""

    name: str
    path: str | None


@cache
def load_fast_blas() -> Blas:
    """Load a fast BLAS where MLX needs one; must run before MLX is imported. Runs once a process.

    Warns where none is found. `SQLORA_BLAS=mlx` in the environment keeps MLX's own, for measurements.
    """
    if sys.platform != "linux":
        return Blas("Accelerate", None)
    if has_cuda():
        _keep_kernels()
        # MLX ends a process that has met more than 800 different graphs of operations, however long ago and however
        # seldom (mlx/backend/cuda/lru_cache.h); a long generation meets many. Without that check it makes them anew.
        os.environ.setdefault("MLX_ENABLE_CACHE_THRASHING_CHECK", "0")
        return Blas("cuBLAS", None)
    if os.environ.get("SQLORA_BLAS") == "mlx":
        return Blas("MLX's reference BLAS", None)
    if "mlx.core" in sys.modules:
        warnings.warn("MLX was imported before sqlora.mlx, so a fast BLAS may not take effect", stacklevel=2)
    # OpenMP's threads spin while they wait. Two processes that do so on the same cores hold each other up a
    # hundredfold (0.2 s a step became 23 s); after a short spin they sleep, at no cost to a process alone.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    for name, path in _candidates():
        try:
            library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        if hasattr(library, "sgemm_"):
            return Blas(name, path)
    warnings.warn(
        "no fast BLAS found, so computing on this CPU is ten times slower than it need be. "
        "Install what requirements.txt lists (torch holds one), or the system's OpenBLAS.",
        stacklevel=2,
    )
    return Blas("MLX's reference BLAS", None)


def cut_graphs(rows: int) -> None:
    """Have MLX end its CUDA graphs by the number of operations alone, for training; before the first operation.

    MLX hands the device graphs of 30 operations, or fewer where these touch many bytes. Then where a graph ends depends
    on a batch's length, and every length has graphs of its own, which the host has to make. Cut by number, graphs of
    all lengths are alike, and kept ones are filled anew.

    Args:
        rows: of a batch. What a graph's operations used is free when all of it has run, and MLX's memory limit does not
            hold back a graph that is not full: those of large batches are shorter, for the device is slower than the
            host there anyway.
    """
    if has_cuda():
        os.environ.setdefault("MLX_MAX_OPS_PER_BUFFER", str(60 if rows < 4 else max(12, 96 // rows)))
        os.environ.setdefault("MLX_MAX_MB_PER_BUFFER", "100000")
        os.environ.setdefault("MLX_CUDA_GRAPH_CACHE_SIZE", "2000")


def _keep_kernels() -> None:
    """MLX compiles some of its CUDA kernels on first use, three seconds each, and forgets them with the next reboot."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "sqlora" / f"kernels-mlx-{metadata.version('mlx')}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # then they lie in MLX's own temporary folder
    os.environ.setdefault("MLX_PTX_CACHE_DIR", str(folder))


@cache
def has_cuda() -> bool:
    """Whether MLX's CUDA build and an NVIDIA device are there. Does not import MLX."""
    installed = {distribution.metadata["Name"] for distribution in metadata.distributions(path=_mlx_site())}
    return any(name and name.startswith("mlx-cuda") for name in installed) and Path("/dev/nvidiactl").exists()


def _mlx_site() -> list[str]:
    spec = importlib.util.find_spec("mlx")
    return [str(Path(place).parent) for place in (spec.submodule_search_locations or ())] if spec else []


def _candidates() -> list[tuple[str, str]]:
    found = []
    spec = importlib.util.find_spec("torch")
    if spec and spec.origin:
        found.append(("PyTorch's BLAS", str(Path(spec.origin).parent / "lib" / "libtorch_cpu.so")))
    for library in ("openblas", "mkl_rt", "blis"):
        path = ctypes.util.find_library(library)
        if path:
            found.append((library, path))
    return found
