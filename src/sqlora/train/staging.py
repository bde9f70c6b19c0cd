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
_ADDRESS, _SIZE = ctypes.c_uint64, ctypes.c_size_t


class StagingError(Exception):
    """The driver does not give what is needed; all else goes on without."""


class Staging:
    """Arrays that take turns. Of use for one thread, which makes it.

    An array's bytes are others once `send` has been called TURNS more times: by then nothing may still be going to read
    them. The host has one block of page-locked memory as large as one of them.

    Args:
        driver: CUDA's library.

    Raises:
        StagingError: also from its methods.
    """

    def __init__(self, driver: Any) -> None:
        try:
            create, self._allocate = driver.cuStreamCreate, driver.cuMemHostAlloc
            self._copy, self._wait = driver.cuMemcpyAsync, driver.cuStreamSynchronize
            free, destroy = driver.cuMemFreeHost, driver.cuStreamDestroy_v2
        except AttributeError as error:
            raise StagingError(f"CUDA's driver lacks a function ({error})") from None
        use_device(driver)
        self._stream = ctypes.c_void_p()
        _check(create(ctypes.byref(self._stream), _NON_BLOCKING))
        self._block = ctypes.c_void_p()
        self._host: NDArray[np.uint8] = np.zeros(0, dtype=np.uint8)  # the block's bytes
        self._arrays: list[tuple[int, mx.array | None]] = [(0, None)] * TURNS  # each with its address
        self._free = free

        def give_back(block: ctypes.c_void_p, stream: ctypes.c_void_p) -> None:
            use_device(driver)  # in whatever thread lets go of the last reference
            free(block)
            destroy(stream)

        weakref.finalize(self, give_back, self._block, self._stream).atexit = False  # the driver may be gone by then

    def room(self, size: int) -> NDArray[np.uint8]:
        """The host's bytes that the next `send` takes, at least so many."""
        if size > len(self._host):
            size += size // 8 if len(self._host) else 0  # so that a few larger ones do not each make it anew
            self._host = np.zeros(0, dtype=np.uint8)
            self._free(self._block)  # nothing, at first
            self._block.value = None
            _check(self._allocate(ctypes.byref(self._block), _SIZE(size), 0))
            assert self._block.value is not None
            self._host = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self._block.value))
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
        _check(self._copy(_ADDRESS(address), _ADDRESS(self._host.ctypes.data), _SIZE(size), self._stream))
        _check(self._wait(self._stream))
        return array


def _check(code: int) -> None:
    if code:
        raise StagingError(f"CUDA's driver answers {code}")


def make_staging() -> Staging | None:
    """For the thread that calls it; None without CUDA.

    Raises:
        StagingError: its driver does not do this.
    """
    driver = load_driver()
    return None if driver is None else Staging(driver)
