"""The two losses: of the completion's tokens alone, and of every token, as the reference counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from sqlora.tokenizer import Encoded
from sqlora.train.buckets import Planned, bucket_of

Fetch = Callable[[Sequence[int], Sequence[int], int], NDArray[np.generic]]
"""Examples, where each of them begins, and a number of tokens -> their inputs, (tokens, …), zeros between them."""


@dataclass(frozen=True)
class Batch:
    """One batch on its way to the model.

    inputs: (rows, length) tokens or (rows, length, width) states; what lies behind an example is zeros. spans: where
    examples lie one after another in one row, (2, length) of each token the first of its example and the end of it.
    positions: (counted,) indices into the flattened (rows, length) whose next token counts; targets: those next tokens.
    weights: (counted,) 1, or 0 where an entry only fills up the shape; answers: 1 where the next token belongs to a
    completion, else 0.
    real_tokens: without padding.
    """

    inputs: NDArray[np.generic]
    positions: NDArray[np.int32]
    targets: NDArray[np.int32]
    weights: NDArray[np.float32]
    answers: NDArray[np.float32]
    real_tokens: int
    spans: NDArray[np.int32] | None = None

    @property
    def counted(self) -> int:
        """How many tokens the loss counts."""
        return int(self.weights.sum())


def counted_from(example: Encoded, kind: str) -> int:
    """The first position of an example whose next token counts."""
    return example.prompt_tokens - 1 if kind == "completion" else 0


def make_batch(examples: Sequence[Encoded], planned: Planned, fetch: Fetch, kind: str) -> Batch:
    """Gather a batch.

    Args:
        examples: of the data set.
        kind: `completion` or `all`.
    """
    chosen, length = planned.chosen, planned.length
    sizes = [len(examples[index].tokens) - 1 for index in chosen]
    starts = list(accumulate(sizes, initial=0)) if planned.packed else [row * length for row in range(len(chosen))]
    positions: list[int] = []
    targets: list[int] = []
    answers: list[float] = []
    for start, index in zip(starts, chosen, strict=False):
        example = examples[index]
        first, last = counted_from(example, kind), len(example.tokens) - 1
        answer = counted_from(example, "completion")
        positions += range(start + first, start + last)
        targets += example.tokens[first + 1 :]
        answers += [float(place >= answer) for place in range(first, last)]
    real = len(positions)
    filling = [0] * (planned.counted - real)
    inputs = fetch(chosen, starts[: len(chosen)], planned.rows * length)
    return Batch(
        inputs.reshape(planned.rows, length, *inputs.shape[1:]),
        np.asarray(positions + filling, dtype=np.int32),
        np.asarray(targets + filling, dtype=np.int32),
        np.asarray([1.0] * real + filling, dtype=np.float32),
        np.asarray(answers + filling, dtype=np.float32),
        sum(len(examples[index].tokens) for index in chosen),
        _spans(starts, length) if planned.packed else None,
    )


def _spans(bounds: Sequence[int], length: int) -> NDArray[np.int32]:
    """Of examples between these bounds; each token that fills up the rest is an example by itself."""
    firsts, ends = np.arange(length, dtype=np.int32), np.arange(1, length + 1, dtype=np.int32)
    for start, end in pairwise(bounds):
        firsts[start:end], ends[start:end] = start, end
    return np.stack([firsts, ends])


def most_counted(sizes: Sequence[tuple[int, int]], buckets: Sequence[int], rows: int) -> dict[int, int]:
    """For each bucket the most tokens that a batch of so many rows can count: one shape a bucket.

    Args:
        sizes: length and counted tokens of each example.
    """
    by_bucket: dict[int, list[int]] = {bucket: [] for bucket in buckets}
    for length, counted in sizes:
        by_bucket[bucket_of(length, buckets)].append(counted)
    most: dict[int, int] = {}
    largest: list[int] = []  # of this bucket and those below, whose left-overs a batch may begin with
    for bucket, counts in by_bucket.items():
        largest = sorted(counts + largest, reverse=True)[:rows]
        most[bucket] = sum(largest)
    return most
