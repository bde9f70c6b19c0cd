"""`python -m sqlora doctor`: what this machine has, how fast it computes, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path

from sqlora.mlx import BLAS, mx

from sqlora.errors import SqloraError
from sqlora.sharing.repository import read_settings

PACKAGES = (
    "mlx",
    "mlx-lm",
    "llguidance",
    "numpy",
    "sentencepiece",
    "torch",
    "tokenizers",
    "safetensors",
    "dvc",
    "ruamel.yaml",
)
# What the reference BLAS reaches on two cores; a CPU below this is not running a fast one.
SLOW_GFLOPS = 20.0
GIGABYTE = 1e9


def diagnose() -> tuple[list[tuple[str, str]], list[str]]:
    """Measure and list.

    Returns:
        (name, value) pairs, and one sentence for each thing that is missing or slow.
    """
    gpu = mx.default_device().type == mx.gpu
    speed = matmul_gflops()
    free = shutil.disk_usage(".").free / GIGABYTE
    facts = [
        ("sqlora", metadata.version("sqlora")),
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("system", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"),
        ("device", f"{_device_name(gpu)}"),
        ("BLAS", BLAS.name + (f" ({BLAS.path})" if BLAS.path else "")),
        ("speed", f"{speed:,.0f} GFLOP/s (float32 matrix product of 1,024 × 1,024)"),
        ("memory", f"{total_memory() / GIGABYTE:.1f} GB"),
        ("free disk", f"{free:.1f} GB"),
    ]
    missing = []
    for package in PACKAGES:
        try:
            facts.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            missing.append(f"{package} is not installed: pip install -r requirements.txt")
    sharing, advice = _sharing()
    facts += sharing
    missing += advice
    if not gpu and BLAS.path is None and sys.platform == "linux":
        missing.append("No fast BLAS was found: pip install -r requirements.txt installs one (torch's).")
    elif not gpu and speed < SLOW_GFLOPS:
        missing.append(f"{speed:.0f} GFLOP/s is slow even for a CPU: is another process using it?")
    if sys.platform == "linux" and not gpu and shutil.which("nvidia-smi"):
        missing.append("An NVIDIA GPU is there but MLX's CUDA build is not: pip install -r requirements-cuda.txt")
    if free < 60:
        missing.append(
            f"{free:.0f} GB of free disk: enough for the demo, but a Mistral profile needs 60 (30 on APFS or btrfs)."
        )
    return facts, missing


def _sharing() -> tuple[list[tuple[str, str]], list[str]]:
    """How artifacts are kept and shared, and what a team should change; nothing outside of a DVC repository."""
    try:
        settings = read_settings(Path())
    except (SqloraError, ImportError):
        return [], []
    facts = [("DVC's cache", f"{settings.cache}, links: {', '.join(settings.link_types)}")]
    remote = settings.remote
    if remote is None:
        return [*facts, ("remote", "none")], []
    facts.append(
        ("remote", f"{remote.name}: {remote.url}, {'verified' if remote.verify else 'not verified'} on a pull")
    )
    if remote.verify:
        return facts, []
    return facts, [
        f"DVC hashes nothing that it pulls from {remote.name}: `dvc remote modify {remote.name} verify true` lets it."
    ]


def matmul_gflops(size: int = 1024, seconds: float = 0.5) -> float:
    """Best of several float32 products of two size × size matrices, in 1e9 operations a second."""
    a = mx.random.normal((size, size), key=mx.random.key(0))
    mx.eval(a, a @ a)
    best, ended = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < ended:
        started = time.perf_counter()
        mx.eval(a @ a)
        best = min(best, time.perf_counter() - started)
    # On the reference BLAS one product takes most of the time allowed; there is always at least one.
    return 2 * size**3 / best / 1e9


def total_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _device_name(gpu: bool) -> str:
    if not gpu:
        return "CPU"
    kind = "Metal" if mx.metal.is_available() else "CUDA"
    return f"GPU ({kind}, {mx.device_info().get('device_name', 'unknown')})"


def print_diagnosis() -> int:
    """Print it; returns the exit status, 1 where something is missing that the demo needs."""
    facts, missing = diagnose()
    for name, value in facts:
        print(f"{name:<14} {value}")
    print()
    for sentence in missing:
        print(f"! {sentence}")
    if not missing:
        print("Nothing is missing.")
    return int(any("not installed" in sentence or "No fast BLAS" in sentence for sentence in missing))
