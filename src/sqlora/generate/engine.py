"""Runs a model over many rows at once, each of which is at a place of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlora.mlx import mx

import numpy as np
from numpy.typing import NDArray

from sqlora.generate.cache import LayerCache
from sqlora.generate.forward import Forward
from sqlora.generate.packed import pack


@dataclass(frozen=True)
class Shapes:
    """Sizes to which arrays are padded. A GPU prepares itself for each new shape, so there are to be few.

    widths: how many tokens a row may take in one step, the widest last; tokens: all rows' tokens in a step are a
    multiple of it; slots: so is the cache's length; prompt: and so are the length of the longest of prompts that are
    read together, and the number of their tokens; prompt_tokens: which is about so many at most.
    """

    widths: tuple[int, ...]
    tokens: int
    slots: int
    prompt: int
    prompt_tokens: int


CPU_SHAPES = Shapes(widths=tuple(range(1, 9)), tokens=1, slots=32, prompt=1, prompt_tokens=2_048)
GPU_SHAPES = Shapes(widths=(1, 4, 16), tokens=32, slots=128, prompt=64, prompt_tokens=4_096)


class Engine:
    """A model and the keys and values of `rows` rows."""

    def __init__(self, forward: Forward, rows: int, shapes: Shapes) -> None:
        self.rows, self.shapes = rows, shapes
        self.lengths = np.zeros(rows, np.int32)  # tokens of each row that are in the cache
        self._forward = forward
        self._caches = [LayerCache(rows, forward.heads) for _ in range(forward.layers)]

    @property
    def vocabulary(self) -> int:
        """The number of logits."""
        return self._forward.vocabulary

    @property
    def widest(self) -> int:
        """The most tokens that a row can take in a step."""
        return self.shapes.widths[-1]

    def read_prompts(self, prompts: Mapping[int, Sequence[int]]) -> mx.array:
        """Put prompts into rows, which forget what they held.

        Returns:
            Logits (len(prompts) or more, vocabulary) behind each prompt, in the mapping's order; not computed yet.
        """
        rows, texts = list(prompts), list(prompts.values())
        width = _rounded(max(map(len, texts)), self.shapes.prompt)
        count = _rounded(sum(map(len, texts)), self.shapes.prompt)
        if self.shapes.prompt > 1:
            extra = (1 << (len(rows) - 1).bit_length()) - len(rows)
            rows, texts = [*rows, *rows[:1] * extra], [*texts, *[()] * extra]
        for row, prompt in prompts.items():
            self.lengths[row] = len(prompt)
        self._reserve()
        step = pack(texts, rows, np.zeros(len(rows), np.int32), width, count, self._caches[0].slots)
        return self._forward(self._caches, step, self.rows, fresh=True)

    def advance(self, chunks: Mapping[int, Sequence[int]]) -> mx.array:
        """Add tokens, `widest` at most, to some of the rows.

        Returns:
            Logits (rows, vocabulary) behind each row's last token, without meaning in rows not named; not computed yet.
        """
        longest = max(map(len, chunks.values()))
        width = next(width for width in self.shapes.widths if width >= longest)
        count = _rounded(sum(map(len, chunks.values())), self.shapes.tokens)
        start = self.lengths.copy()
        for row, chunk in chunks.items():
            self.lengths[row] += len(chunk)
        self._reserve()
        texts = [chunks.get(row, ()) for row in range(self.rows)]
        step = pack(texts, range(self.rows), start, width, count, self._caches[0].slots)
        return self._forward(self._caches, step, self.rows, fresh=False)

    def reorder(self, sources: NDArray[np.int32]) -> None:
        """Row n becomes what row sources[n] was."""
        if not np.array_equal(sources, np.arange(self.rows)):
            self.lengths = self.lengths[sources]
            for cache in self._caches:
                cache.reorder(mx.array(sources))

    def release(self, row: int) -> None:
        """Nothing of the row is needed any more, and it asks for no room."""
        self.lengths[row] = 0

    def _reserve(self) -> None:
        slots = _rounded(int(self.lengths.max()), self.shapes.slots)
        for cache in self._caches:
            cache.slots = max(cache.slots, slots)


def _rounded(number: int, step: int) -> int:
    return -(-number // step) * step
