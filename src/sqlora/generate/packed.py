"""Lays out a step in which every row adds as many tokens as it has, without padding.

Matrices are applied to the tokens of all rows in one list; only attention, which costs little here, sees rows of equal
width. mlx-lm's own forward pass would pad all rows to the widest everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlora.mlx import mx

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int32]


@dataclass(frozen=True)
class Step:
    """The tokens of a step and where they belong, on the host.

    tokens, rows, slots, places, columns: (count,) each, of a token: its id, its row in the caches, its slot there, its
    row in the step, and which of that row's new tokens it is.
    queries: (rows of the step, width), which token is a row's nth new one; last: (rows of the step,), which one is its
    last; start: (rows of the step,), the slot of its first. What is padding points at any token.
    room: slots of the caches.
    """

    tokens: Numbers
    rows: Numbers
    slots: Numbers
    places: Numbers
    columns: Numbers
    queries: Numbers
    last: Numbers
    start: Numbers
    room: int


def pack(
    chunks: Sequence[Sequence[int]], rows: Sequence[int], start: Numbers, width: int, count: int, room: int
) -> Step:
    """Lay out a step.

    Args:
        chunks: of each row of the step its new tokens; none where it has none.
        rows: of each row of the step its row in the caches; start: the slot of its first new token.
        width: the longest chunk's length or more; count: the number of all tokens or more.
        room: slots of the caches.
    """
    tokens, places, columns = list[int](), list[int](), list[int]()
    queries = np.zeros((len(chunks), width), np.int32)
    last = np.zeros(len(chunks), np.int32)
    for place, chunk in enumerate(chunks):
        if chunk:
            queries[place, : len(chunk)] = range(len(tokens), len(tokens) + len(chunk))
            tokens += chunk
            places += [place] * len(chunk)
            columns += range(len(chunk))
            last[place] = len(tokens) - 1
    # Padding repeats the last token, so it writes what that one writes.
    extra = count - len(tokens)
    packed = np.array([column + column[-1:] * extra for column in (tokens, places, columns)], np.int32)
    start = start.astype(np.int32)
    slots = start[packed[1]] + packed[2]
    return Step(packed[0], np.array(rows, np.int32)[packed[1]], slots, packed[1], packed[2], queries, last, start, room)


def to_device(arrays: Sequence[Numbers]) -> list[mx.array]:
    """In one transfer, for on a CUDA device each one waits for all work under way."""
    whole = mx.array(np.concatenate([array.reshape(-1) for array in arrays]))
    ends = [int(end) for end in np.cumsum([array.size for array in arrays])]
    return [part.reshape(array.shape) for part, array in zip(mx.split(whole, ends[:-1]), arrays, strict=True)]


def make_seen(start: mx.array, width: int, slots: int, window: int | None) -> mx.array:
    """Which slots new tokens see: their row up to themselves, and no further back than a window.

    Args:
        start: (rows,) the slot of each row's first new token.
        width, slots: how many new tokens and slots each row has.

    Returns:
        (rows, 1, width, slots).
    """
    places = (start[:, None] + mx.arange(width))[:, None, :, None]
    keys = mx.arange(slots)
    return keys <= places if window is None else (keys <= places) & (keys > places - window)


def additive(seen: mx.array, dtype: mx.Dtype) -> mx.array:
    """What is added to scores: minus infinity for what is not seen."""
    return mx.where(seen, mx.array(0, dtype), mx.array(-mx.inf, dtype))
