"""How much memory this machine has for a run, and where."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlora.mlx import mx


@dataclass(frozen=True)
class Machine:
    """device: cpu, cuda or metal; memory: bytes that a run may take; name: for people."""

    device: str
    memory: int
    name: str


def this_machine() -> Machine:
    """Where MLX computes here, and how much memory it has free.

    On a Mac the GPU's recommended working set, beyond which macOS pages; on an NVIDIA GPU what is free; on a CPU the
    available memory, or what a container's limit leaves of it, and what this process has already.
    """
    if mx.default_device().type != mx.gpu:
        return Machine("cpu", available_memory() + resident_memory(), f"a CPU with {os.cpu_count()} cores")
    info = mx.device_info()
    name = str(info.get("device_name", "GPU"))
    if mx.metal.is_available():
        return Machine("metal", int(info["max_recommended_working_set_size"]), name)
    free = info.get("free_memory", info.get("total_memory", info.get("memory_size", 0)))
    return Machine("cuda", int(free) + mx.get_active_memory() + mx.get_cache_memory(), name)


def available_memory() -> int:
    """Bytes of memory that a new process could use without pushing others out."""
    return min([_system_available(), *_groups()])


def resident_memory() -> int:
    """Bytes of this process that are in memory now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        import resource  # no /proc on a Mac; the most so far is the next best

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def outside_memory() -> int:
    """Bytes of this process beside MLX's arrays, after a product that has loaded the BLAS's code and buffers."""
    a = mx.random.normal((1024, 1024), key=mx.random.key(0))
    mx.eval(a @ a)
    del a
    mx.clear_cache()
    return resident_memory() - mx.get_active_memory()


def _system_available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """What the control groups that this process may be in leave of their limits, of version 2 and of version 1."""
    names = {"": ("memory.max", "memory.current"), "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes")}
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in lines:
        if controllers not in names:
            continue
        most, used = names[controllers]
        # Inside a container its own group is what is mounted, whatever the path says.
        for folder in {root / controllers / path.lstrip("/"), root / controllers}:
            try:
                limit = int((folder / most).read_text())
                taken = int((folder / used).read_text()) - _reclaimable(folder)
            except (OSError, ValueError):  # not there, or `max`
                continue
            yield max(0, limit - taken)


def _reclaimable(folder: Path) -> int:
    """Bytes of files in a control group's memory, which go when memory is short."""
    fields = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return int(fields.get("inactive_file", 0)) + int(fields.get("active_file", 0))
