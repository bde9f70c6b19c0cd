"""Keys and values of rows that advance by different amounts.

mlx-lm's batched cache keeps all rows at one place by padding on the left. Here token n of a row lies in slot n,
whatever the other rows do, and a row can be given to another question without touching the others.
"""

from __future__ import annotations

from sqlora.mlx import mx


class LayerCache:
    """Keys and values of one layer: (rows, heads, slots, width of a head), once there is room for them.

    Args:
        rows: how many questions there is room for.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._keys: mx.array | None = None
        self._values: mx.array | None = None
        self.slots = 0

    def write(self, rows: mx.array, slots: mx.array, keys: mx.array, values: mx.array) -> None:
        """Put (tokens, heads, width) into the slots (tokens,) of the rows (tokens,)."""
        if self._keys is None or self._values is None or self._keys.shape[2] < self.slots:
            self._keys = self._grown(self._keys, keys)
            self._values = self._grown(self._values, values)
        self._keys[rows, :, slots] = keys
        self._values[rows, :, slots] = values

    def all(self) -> tuple[mx.array, mx.array]:
        """Keys and values."""
        assert self._keys is not None
        assert self._values is not None
        return self._keys, self._values

    def reorder(self, sources: mx.array) -> None:
        """Row n becomes what row sources[n] was."""
        keys, values = self.all()
        self._keys, self._values = keys[sources], values[sources]

    def _grown(self, array: mx.array | None, like: mx.array) -> mx.array:
        _, heads, width = like.shape
        room = mx.zeros((self._rows, heads, self.slots - (0 if array is None else array.shape[2]), width), like.dtype)
        return room if array is None else mx.concatenate([array, room], axis=2)
