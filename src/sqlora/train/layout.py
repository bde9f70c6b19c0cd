"""The adapter's arrays as one vector: the optimizer takes a dozen operations instead of a dozen for each array."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sqlora.mlx import mx


class Layout:
    """Where each array of the adapter lies in the vector.

    Args:
        arrays: name -> array, in the order of the vector.
    """

    def __init__(self, arrays: Mapping[str, mx.array]) -> None:
        self.shapes = {name: value.shape for name, value in arrays.items()}
        self._ends: list[int] = []
        for shape in self.shapes.values():
            self._ends.append((self._ends[-1] if self._ends else 0) + math.prod(shape))

    @property
    def starts(self) -> dict[str, int]:
        """Of each array."""
        return dict(zip(self.shapes, [0, *self._ends], strict=False))

    @property
    def size(self) -> int:
        """Of the vector."""
        return self._ends[-1]

    def join(self, arrays: Mapping[str, mx.array]) -> mx.array:
        """The vector of these arrays, which have this layout's names and shapes, in any order."""
        return mx.concatenate([arrays[name].reshape(-1) for name in self.shapes])

    def split(self, vector: mx.array) -> dict[str, mx.array]:
        """The arrays by name."""
        parts = mx.split(vector, self._ends[:-1])
        return {name: part.reshape(shape) for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)}
