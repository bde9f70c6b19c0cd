"""What a run was made with: versions and machine, as results/training.json records them."""

from __future__ import annotations

import os
import platform
from importlib import metadata

from sqlora.mlx import BLAS, mx

# What a result may depend on; the rest of requirements.txt reads and writes files.
_PACKAGES = ("sqlora", "mlx", "mlx-lm", "numpy")


def environment() -> list[tuple[str, str]]:
    """(name, value) pairs for people; nothing that names the machine or its user.

    A list, because DVC's tables of metrics show an object's texts beside the numbers, and leave lists out.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return [
        ("System", f"{platform.system()} {platform.machine()}"),
        ("Processor", f"{os.cpu_count()} cores, {memory:.0f} GB of memory"),
        ("Device", _device()),
        ("Python", platform.python_version()),
        *((package, metadata.version(package)) for package in _PACKAGES),
    ]


def _device() -> str:
    if mx.default_device().type != mx.gpu:
        return f"CPU, {BLAS.name}"
    return f"{mx.device_info().get('device_name', 'GPU')}, {'Metal' if mx.metal.is_available() else 'CUDA'}"
