"""Memory of a CUDA device that is filled again and again, beside whatever the device computes.

Memory that host and device share is made page by page, at 2 GB/s, moves page by page, and its release waits for all
work that is under way; the thread that issues steps is held up meanwhile. Here the memory is made once, and the
device's copy engine fills it from page-locked memory of the host (docs/decisions.md).
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

from sqlora.mlx import mx

import numpy as np
from numpy.typing import NDArray

from sqlora.prefetch import load_driver, prefetch, use_device

TURNS = 3  # one whose last step may still be computed, the one that steps come from, and the next
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: a stream that does not wait for the default one


class StagingError(Exception):
    """The driver does not give what is needed; all else goes on without."""


class Staging:
    """Arrays that take turns. Of use for one thread.

    An array's bytes are others once `send` has been called TURNS more times: by then nothing may still be going to read
    them.

    Args:
        driver: CUDA's library.

    Raises:
        StagingError: also from its methods.
    """

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        use_device(driver)
        stream = ctypes.c_void_p()
        self._check(driver.cuStreamCreate(ctypes.byref(stream), _NON_BLOCKING))
        self._stream = stream
        self._host: NDArray[np.uint8] = np.zeros(0, dtype=np.uint8)
        self._arrays: list[tuple[int, mx.array | None]] = [(0, None)] * TURNS  # each with its address
        self._free: Any = None

    def room(self, size: int) -> NDArray[np.uint8]:
        """The host's bytes that the next `send` takes."""
        if size > len(self._host):
            size = size + size // 8  # later ones may be a little larger
            address = ctypes.c_void_p()
            self._check(self._driver.cuMemHostAlloc(ctypes.byref(address), ctypes.c_size_t(size), 0))
            assert address.value is not None
            if self._free is not None:
                self._free()
            self._free = weakref.finalize(self, self._driver.cuMemFreeHost, address)
            self._free.atexit = False  # the driver may be gone
            self._host = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address.value))
        return self._host

    def send(self, size: int) -> mx.array:
        """The first so many bytes of `room`, as an array on the device; they have come when this returns."""
        address, array = self._arrays.pop(0)
        if array is None or size > array.size:
            array = None  # before the next one is made
            array = mx.zeros(len(self._host), dtype=mx.uint8, stream=mx.cpu)
            mx.eval(array)
            address = np.asarray(array).ctypes.data
            prefetch([array])  # and there it stays: only the copy engine writes to it
        self._arrays.append((address, array))
        target, source = ctypes.c_uint64(address), ctypes.c_uint64(self._host.ctypes.data)
        self._check(self._driver.cuMemcpyAsync(target, source, ctypes.c_size_t(size), self._stream))
        self._check(self._driver.cuStreamSynchronize(self._stream))
        return array

    @staticmethod
    def _check(code: int) -> None:
        if code:
            raise StagingError(f"CUDA's driver answers {code}")


def make_staging() -> Staging | None:
    """For the thread that calls it; None without CUDA, or where its driver does not do this."""
    driver = load_driver()
    if driver is None:
        return None
    try:
        return Staging(driver)
    except (StagingError, AttributeError):  # the latter: a function that this driver lacks
        return None
