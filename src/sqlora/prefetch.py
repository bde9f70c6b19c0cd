"""Brings arrays that the host filled to a CUDA device before anything there needs them.

MLX keeps such arrays in managed memory, whose pages come over one by one, when a kernel first touches them: 0.04 s for
a layer of Mistral-7B. Asked for beforehand, they come in one piece in 0.01 s (one NVIDIA H200, docs/decisions.md).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from functools import cache

from sqlora.mlx import mx

import numpy as np

from sqlora.runtime import has_cuda

_LEAST_BYTES = 1_000_000
_DEVICE = 0  # which MLX computes on: mlx.launch shows each rank one device only

Ask = Callable[[int, int], object]
"""Called with an address and a number of bytes."""


def prefetch(arrays: Iterable[mx.array], ask: Ask | None = None) -> None:
    """Ask for arrays whose bytes the host wrote: read on the CPU's stream, or made from NumPy's. Does not wait for the
    device. A hint: where the driver declines, the pages come as ever; without CUDA nothing happens.

    Args:
        arrays: computed already. An array that the device wrote would be moved to the host.
    """
    ask = ask or _driver()
    if ask is None:
        return
    for array in arrays:
        if array.nbytes >= _LEAST_BYTES:
            # NumPy lacks bfloat16; on the CPU's stream another view of the bytes does not wait for the device.
            seen = array.view(mx.uint16, stream=mx.cpu) if array.dtype == mx.bfloat16 else array
            ask(np.asarray(seen).ctypes.data, array.nbytes)


@cache
def _driver() -> Ask | None:
    if not has_cuda() or mx.default_device().type != mx.DeviceType.gpu:
        return None
    try:
        function = ctypes.CDLL("libcuda.so.1").cuMemPrefetchAsync
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_uint64, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
    default_stream = None
    return lambda address, size: function(address, size, _DEVICE, default_stream)
