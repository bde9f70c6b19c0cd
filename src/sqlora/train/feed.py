"""Brings batches to the device: gathered in the background, and several steps in one transfer.

Each transfer takes the host some time, however small it is. On CUDA the background brings the steps' inputs to the
device, too (sqlora.train.staging), by what works without Python's lock: the thread that issues steps needs Python
between them, and the device would soon have nothing to do.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from sqlora.mlx import mx

import numpy as np
from numpy.typing import NDArray

from sqlora.prefetch import prefetch
from sqlora.runtime import has_cuda
from sqlora.train.loss import Batch
from sqlora.train.staging import Staging, StagingError, make_staging

TRANSFER_BYTES = 32_000_000  # at once
_CUDA_TRANSFER_BYTES = 64_000_000  # of steps' inputs on CUDA, unless a step has more; a device has TURNS times that
_MOST_STEPS = 16
_ALIGNMENT = 256  # of an array's first byte, for kernels that read many bytes at once
_TYPES = {
    "uint16": mx.bfloat16,  # which numpy lacks
    "float16": mx.float16,
    "float32": mx.float32,
    "int32": mx.int32,
}


@dataclass(frozen=True)
class Ready:
    """A Batch on the device.

    places: (T,) for each of the rows x length tokens its entry of positions, or the number of entries if it has none.
    counted: how many tokens the loss counts. spans: as in Batch; None where every row is an example.
    """

    inputs: mx.array
    positions: mx.array
    targets: mx.array
    weights: mx.array
    answers: mx.array
    places: mx.array
    counted: int
    spans: mx.array | None = None


def transfer(batches: Sequence[Batch]) -> list[Ready]:
    """Bring batches to the device, all at once."""
    return _unpack(_pack([(list(batches), [])]))[0][0]


@dataclass(frozen=True)
class StepData:
    """What a step works on: this rank's batches, and which examples all ranks have."""

    batches: list[Ready]
    chosen: list[int]


def steps_together(step_bytes: int, *, cuda: bool) -> int:
    """How many steps of about that size are transferred at once."""
    most = _CUDA_TRANSFER_BYTES if cuda else TRANSFER_BYTES
    return min(_MOST_STEPS, max(1, most // max(1, step_bytes)))


Gather = Callable[[int], tuple[list[Batch], list[int]]]


class Feed:
    """Gives each step's data; steps are asked for in rising order, each when the last but one has been computed.

    Args:
        gather: the batches and examples of a step.
        steps: their number.
        step_bytes: about what a step's batches take.
    """

    def __init__(self, gather: Gather, steps: int, step_bytes: int) -> None:
        self._gather, self._steps = gather, steps
        self._together = steps_together(step_bytes, cuda=has_cuda())
        self._background = ThreadPoolExecutor(max_workers=1)
        self._staging: Staging | None = None
        self._staged = False  # whether that was asked for
        self._next: tuple[int, Future[_Packed]] | None = None
        self._ready: tuple[int, list[StepData]] = (-1, [])

    def begin(self, step: int) -> None:
        """Begin to gather the data of this step and those behind it."""
        if step < self._steps:
            self._next = self._start(step // self._together)

    def __call__(self, step: int) -> StepData:
        """The data of a step."""
        number, place = divmod(step, self._together)
        if number != self._ready[0]:
            waiting = self._next if self._next and self._next[0] == number else self._start(number)
            self._ready = number, []  # let go of the last ones first
            self._ready = number, [StepData(*one) for one in _unpack(waiting[1].result())]
            self._next = self._start(number + 1) if (number + 1) * self._together < self._steps else None
        return self._ready[1][place]

    def behind(self, step: int) -> list[StepData]:
        """The data of the steps behind one, as far as they are on the device."""
        number, place = divmod(step, self._together)
        return self._ready[1][place + 1 :] if number == self._ready[0] else []

    def _start(self, number: int) -> tuple[int, Future[_Packed]]:
        steps = range(number * self._together, min(self._steps, (number + 1) * self._together))
        return number, self._background.submit(self._prepare, steps)

    def _prepare(self, steps: range) -> _Packed:
        gathered = [self._gather(step) for step in steps]
        try:
            if not self._staged:
                self._staged, self._staging = True, make_staging()
            return _pack(gathered, self._staging)
        except StagingError as error:
            self._staging = None
            print(f"inputs are brought to the device in a way that takes it longer ({error})", file=sys.stderr)
        return _pack(gathered)  # not in there, where what was staged would still be held


@dataclass(frozen=True)
class _Packed:
    """buffer: bytes of all arrays, on the host or sent; steps: of each step its batches, as (arrays' places, counted),
    and its examples.
    """

    buffer: NDArray[np.uint8] | mx.array
    steps: list[tuple[list[tuple[list[_Place], int]], list[int]]]


@dataclass(frozen=True)
class _Place:
    start: int
    end: int
    shape: tuple[int, ...]
    dtype: str


def _pack(steps: Sequence[tuple[list[Batch], list[int]]], staging: Staging | None = None) -> _Packed:
    """Lay all arrays out one behind the other.

    Raises:
        StagingError: as staging does.
    """
    arrays: list[NDArray[np.generic]] = []
    places: list[_Place] = []
    end = 0
    packed = []
    for batches, chosen in steps:
        entries = []
        for batch in batches:
            first = len(places)
            own = [batch.inputs, batch.positions, batch.targets, batch.weights, batch.answers, _places(batch)]
            for array in own if batch.spans is None else [*own, batch.spans]:
                start = -(-end // _ALIGNMENT) * _ALIGNMENT
                end = start + array.nbytes
                arrays.append(array)
                places.append(_Place(start, end, array.shape, array.dtype.name))
            entries.append((places[first:], batch.counted))
        packed.append((entries, chosen))
    if staging and end:
        _fill(staging.room(end), arrays, places)
        return _Packed(staging.send(end), packed)
    # Where the device shares the host's memory anyhow, a copy made this early would save no time.
    if not has_cuda():
        filled = np.zeros(end, dtype=np.uint8)
        _fill(filled, arrays, places)
        return _Packed(filled, packed)
    buffer, filled = _shared(end)
    _fill(filled, arrays, places)
    prefetch([buffer])
    return _Packed(buffer, packed)


def _fill(buffer: NDArray[np.uint8], arrays: Sequence[NDArray[np.generic]], places: Sequence[_Place]) -> None:
    for array, place in zip(arrays, places, strict=True):
        buffer[place.start : place.end] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _shared(size: int) -> tuple[mx.array, NDArray[np.uint8]]:
    """Bytes that host and device share, as MLX has them and as NumPy has them: for a validation's inputs, and where a
    driver does not stage steps'.

    `mx.array` of a NumPy array holds Python's lock until every page is there and filled. Here MLX's own thread makes
    the pages, and NumPy copies without the lock.
    """
    array = mx.zeros(size, dtype=mx.uint8, stream=mx.cpu)
    mx.eval(array)
    return array, np.asarray(array)


def _send(packed: _Packed) -> _Packed:
    if isinstance(packed.buffer, mx.array):
        return packed
    return replace(packed, buffer=mx.array(packed.buffer))


def _unpack(packed: _Packed) -> list[tuple[list[Ready], list[int]]]:
    whole = _send(packed).buffer
    assert isinstance(whole, mx.array)

    def ready(places: list[_Place], counted: int) -> Ready:
        inputs, positions, targets, weights, answers, back, *spans = (
            whole[one.start : one.end].view(_TYPES[one.dtype]).reshape(one.shape) for one in places
        )
        return Ready(inputs, positions, targets, weights, answers, back, counted, *spans)

    return [([ready(*entry) for entry in entries], chosen) for entries, chosen in packed.steps]


def _places(batch: Batch) -> NDArray[np.int32]:
    size, real = len(batch.positions), batch.counted
    places = np.full(batch.inputs.shape[0] * batch.inputs.shape[1], size, dtype=np.int32)
    places[batch.positions[:real]] = np.arange(real, dtype=np.int32)
    return places
