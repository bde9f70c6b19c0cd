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
    same for all layers: a row after the other, in it a head after the other, in it a slot after the other.

    Args:
        rows: how many questions there is room for.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._heads = 0
        self._keys: mx.array | None = None
        self._values: mx.array | None = None
        self.slots = 0

    def write(self, places: mx.array, keys: mx.array, values: mx.array) -> None:
        """Put (tokens, heads, width) into the places that `places_of` gave."""
        if self._keys is None or self._values is None or self._keys.shape[0] < self._rows * self._heads * self.slots:
            self._heads = keys.shape[1]
            self._keys, self._values = self._grown(self._keys, keys), self._grown(self._values, values)
        self._keys[places] = keys.reshape(-1, keys.shape[-1])
        self._values[places] = values.reshape(-1, values.shape[-1])

    def all(self) -> tuple[mx.array, mx.array]:
        """Keys and values: (rows, heads, slots, width)."""
        assert self._keys is not None
        assert self._values is not None
        shape = (self._rows, self._heads, self.slots, -1)
        return self._keys.reshape(shape), self._values.reshape(shape)

    def reorder(self, sources: mx.array) -> None:
        """Row n becomes what row sources[n] was."""
        keys, values = self.all()
        self._keys, self._values = (one[sources].reshape(-1, one.shape[-1]) for one in (keys, values))

    def _grown(self, array: mx.array | None, like: mx.array) -> mx.array:
        width = like.shape[-1]
        if array is None:
            return mx.zeros((self._rows * self._heads * self.slots, width), like.dtype)
        before = array.reshape(self._rows, self._heads, -1, width)
        room = mx.zeros((self._rows, self._heads, self.slots - before.shape[2], width), like.dtype)
        return mx.concatenate([before, room], axis=2).reshape(-1, width)


def places_of(rows: NDArray[np.int32], slots: NDArray[np.int32], heads: int, room: int) -> NDArray[np.int32]:
    """Where the heads of tokens lie in a cache with room for so many slots a row: (tokens * heads,).

    Args:
        rows, slots: (tokens,) each.
    """
    first: NDArray[np.int32] = (rows * heads)[:, None] + np.arange(heads, dtype=np.int32)
    return (first * room + slots[:, None]).reshape(-1).astype(np.int32)
