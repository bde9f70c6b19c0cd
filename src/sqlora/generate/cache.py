"""Keys and values of rows that advance by different amounts.

mlx-lm's batched cache keeps all rows at one place by padding on the left. Here token n of a row lies in slot n,
whatever the other rows do, and a row can be given to another question without touching the others.
"""

from __future__ import annotations

from sqlora.mlx import mx

import numpy as np
from numpy.typing import NDArray


class LayerCache:
    """Keys and values of one layer, once there is room for them.

    They are kept as one long list of (width of a head,), so that writing a step's tokens takes one index, which is the
    same for all layers: all keys before all values, of them a row after the other, in it a head after the other, in it
    a slot after the other.

    Args:
        rows: how many questions there is room for.
        heads: of keys.
    """

    def __init__(self, rows: int, heads: int) -> None:
        self._rows, self._heads = rows, heads
        self._held: mx.array | None = None
        self.slots = 0

    def write(self, places: mx.array, entries: mx.array) -> None:
        """Put a step's keys and values, (tokens * twice the heads, width), into the places that `places_of` gave."""
        room = 2 * self._rows * self._heads * self.slots
        if self._held is None:
            self._held = mx.zeros((room, entries.shape[1]), entries.dtype)
        elif self._held.shape[0] < room:
            before = self._held.reshape(2 * self._rows * self._heads, -1, entries.shape[1])
            more = mx.zeros((before.shape[0], self.slots - before.shape[1], entries.shape[1]), entries.dtype)
            self._held = mx.concatenate([before, more], axis=1).reshape(-1, entries.shape[1])
        self._held[places] = entries

    @property
    def held(self) -> mx.array:
        """All of it, as the last writing leaves it."""
        assert self._held is not None
        return self._held

    def all(self) -> tuple[mx.array, mx.array]:
        """Keys and values: (rows, heads, slots, width)."""
        half = self._rows * self._heads * self.slots
        shape = (self._rows, self._heads, self.slots, -1)
        # Slices are views; an index would copy.
        return self.held[:half].reshape(shape), self.held[half:].reshape(shape)

    def reorder(self, sources: mx.array) -> None:
        """Row n becomes what row sources[n] was."""
        whole = self.held.reshape(2, self._rows, self._heads, self.slots, -1)
        self._held = whole[:, sources].reshape(-1, whole.shape[-1])


def places_of(
    rows: NDArray[np.int32], slots: NDArray[np.int32], all_rows: int, heads: int, room: int
) -> NDArray[np.int32]:
    """Where the keys, and behind them the values, of each token lie in a cache: (tokens * twice the heads,).

    Args:
        rows, slots: (tokens,) each.
        all_rows, heads, room: of the cache, which has room for so many slots a row.
    """
    first = np.arange(2)[:, None] * all_rows * heads + np.arange(heads)  # (2, heads)
    whole = (first + (rows * heads)[:, None, None]) * room + slots[:, None, None]
    return whole.reshape(-1).astype(np.int32)
