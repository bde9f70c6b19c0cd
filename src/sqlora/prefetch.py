"""Brings arrays that the host filled to a CUDA device before anything there needs them.

MLX keeps such arrays in managed memory, whose pages come over one by one, when a kernel first touches them: 0.04 s for
a layer of Mistral-7B. Asked for beforehand, they come in one piece in 0.01 s (one NVIDIA H200, docs/decisions.md).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from sqlora.mlx import mx

import numpy as np

from sqlora.runtime import has_cuda

_LEAST_BYTES = 1_000_000
_DEVICE = 0  # which MLX computes on: mlx.launch shows each rank one device only
_INVALID_CONTEXT = 201  # CUDA's, in a thread that has not used the device yet

Place = tuple[int, int]
"""An address and a number of bytes."""

Ask = Callable[[int, int], object]
"""Called with a place's two numbers."""


def prefetch(arrays: Iterable[mx.array]) -> None:
    """Ask for arrays whose bytes the host wrote: read on the CPU's stream, or made from NumPy's. Does not wait for the
    device. A hint: where the driver declines, the pages come as ever; without CUDA nothing happens.

    Args:
        arrays: computed already. An array that the device wrote would be moved to the host.
    """
    ask_for(places_of(arrays))


def places_of(arrays: Iterable[mx.array]) -> list[Place]:
    """Where the large ones among such arrays lie; none without CUDA. Waits for what is under way on the CPU's stream.

    Of use apart from `ask_for` where something else is begun on that stream in between: asking takes the driver a
    while.
    """
    return large_places(arrays) if _driver() else []


def ask_for(places: Iterable[Place]) -> None:
    """Ask for what `places_of` gave; the arrays must still be there."""
    ask = _driver()
    for address, size in places:
        if ask is not None:
            ask(address, size)


def large_places(arrays: Iterable[mx.array]) -> list[Place]:
    """As places_of, with CUDA or without."""
    places = []
    for array in arrays:
        if array.nbytes >= _LEAST_BYTES:
            # NumPy lacks bfloat16; on the CPU's stream another view of the bytes does not wait for the device.
            seen = array.view(mx.uint16, stream=mx.cpu) if array.dtype == mx.bfloat16 else array
            places.append((np.asarray(seen).ctypes.data, array.nbytes))
    return places


@cache
def load_driver() -> Any:
    """CUDA's driver, as a library of ctypes; None without it."""
    if not has_cuda() or mx.default_device().type != mx.DeviceType.gpu:
        return None
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def use_device(driver: Any) -> None:
    """Have the calling thread use the device's context that MLX uses, too."""
    context = ctypes.c_void_p()
    driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), _DEVICE)
    driver.cuCtxSetCurrent(context)


@cache
def _driver() -> Ask | None:
    driver = load_driver()
    function = getattr(driver, "cuMemPrefetchAsync", None)
    if function is None:
        return None
    function.argtypes = [ctypes.c_uint64, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
    default_stream = None

    def ask(address: int, size: int) -> None:
        if function(address, size, _DEVICE, default_stream) == _INVALID_CONTEXT:
            use_device(driver)
            function(address, size, _DEVICE, default_stream)

    return ask
