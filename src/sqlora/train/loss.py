"""The two losses: of the completion's tokens alone, and of every token, as the reference counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sqlora.tokenizer import Encoded
from sqlora.train.buckets import bucket_of

Fetch = Callable[[Sequence[int], int], NDArray[np.generic]]


@dataclass(frozen=True)
class Batch:
    """One batch on its way to the model.

    inputs: (rows, length) tokens or (rows, length, width) states; what lies behind an example is zeros.
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

    @property
    def counted(self) -> int:
        """How many tokens the loss counts."""
        return int(self.weights.sum())


def counted_from(example: Encoded, kind: str) -> int:
    """The first position of an example whose next token counts."""
    return example.prompt_tokens - 1 if kind == "completion" else 0


def make_batch(
    examples: Sequence[Encoded],
    chosen: Sequence[int],
    fetch: Fetch,
    *,
    length: int,
    kind: str,
    rows: int = 0,
    counted: int = 0,
) -> Batch:
    """Gather a batch.

    Args:
        chosen: indices into examples.
        fetch: gives the inputs of examples at a length.
        kind: `completion` or `all`.
        rows, counted: the shape up to which the batch is filled; 0 is as much as there is.
    """
    positions: list[int] = []
    targets: list[int] = []
    answers: list[float] = []
    for row, index in enumerate(chosen):
        example = examples[index]
        first, last = counted_from(example, kind), len(example.tokens) - 1
        answer = counted_from(example, "completion")
        positions += range(row * length + first, row * length + last)
        targets += example.tokens[first + 1 :]
        answers += [float(place >= answer) for place in range(first, last)]
    real = len(positions)
    filling = [0] * (counted - real)
    inputs = fetch(chosen, length)
    if len(inputs) < rows:
        inputs = np.concatenate([inputs, np.zeros((rows - len(inputs), *inputs.shape[1:]), dtype=inputs.dtype)])
    return Batch(
        inputs,
        np.asarray(positions + filling, dtype=np.int32),
        np.asarray(targets + filling, dtype=np.int32),
        np.asarray([1.0] * real + filling, dtype=np.float32),
        np.asarray(answers + filling, dtype=np.float32),
        sum(len(examples[index].tokens) for index in chosen),
    )


def most_counted(examples: Sequence[Encoded], buckets: Sequence[int], batch_size: int, kind: str) -> dict[int, int]:
    """For each bucket the most tokens that a batch of it can count: one shape a bucket."""
    by_bucket: dict[int, list[int]] = {bucket: [] for bucket in buckets}
    for example in examples:
        last = len(example.tokens) - 1
        by_bucket[bucket_of(last, buckets)].append(last - counted_from(example, kind))
    most: dict[int, int] = {}
    largest: list[int] = []  # of this bucket and those below, whose left-overs a batch may begin with
    for bucket, counts in by_bucket.items():
        largest = sorted(counts + largest, reverse=True)[:batch_size]
        most[bucket] = sum(largest)
    return most
