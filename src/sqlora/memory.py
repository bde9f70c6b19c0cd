"""How much memory this process has used at most."""

from __future__ import annotations

import resource
import sys

from sqlora.mlx import mx


def peak_memory() -> float:
    """In GB (1e9 bytes): what MLX held on a GPU, the whole process's resident memory on a CPU."""
    if mx.default_device().type == mx.gpu:
        return round(mx.get_peak_memory() / 1e9, 3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e9, 3)
