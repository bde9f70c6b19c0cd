"""Few batch shapes with little padding: every shape costs a GPU the compilation of its kernels."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

MOST_PADDING = 0.04
# Here padding costs little, and a GPU takes a tenth of a second to get ready for each new shape.
FROZEN_PADDING = 0.1
VALIDATION_PADDING = 0.15
_MOST_BUCKETS = 24
# Of so many examples or more no batch holds two buckets': there are too few batches that such ones would not matter.
LARGE_BATCH = 16
_LARGE_PADDING = 0.048  # with them nothing is added to it
_BATCHES_OF_BUCKET = 2  # of large ones, on average at least, or every epoch has the same
VALIDATION_TOKENS = 1_024  # of one of its batches, about


def choose_lengths(lengths: Sequence[int], most_padding: float = MOST_PADDING, batch_size: int = 1) -> tuple[int, ...]:
    """The fewest lengths such that padding each example to the next of them adds at most that share of all tokens.

    With large batches, and few of them, it may add more.

    Dynamic programming over the sorted lengths: the cheapest way to cover the shortest ones with a given number of
    buckets, extended by one bucket at a time.

    Args:
        batch_size: buckets for large ones hold whole batches, as `epoch_batches` fills them.

    Returns:
        In rising order; the last is the longest example's.
    """
    large = batch_size if batch_size >= LARGE_BATCH else 1
    ordered = np.sort(np.asarray(lengths))
    real = int(ordered.sum())
    # The longest of each batch of the sorted examples counts for all of them. What is left over are the shortest.
    longest = ordered[::-1][::large][::-1]
    sizes = np.full(len(longest), large)
    sizes[0] = len(ordered) - large * (len(longest) - 1)
    values, inverse = np.unique(longest, return_inverse=True)
    counts = np.bincount(inverse, weights=sizes).astype(np.int64)
    before = np.concatenate([[0], np.cumsum(counts)])
    # cost[i, j]: tokens, padding included, of the examples whose length is values[i], …, values[j].
    size = len(values)
    cost = np.where(
        np.arange(size)[:, None] <= np.arange(size)[None, :],
        (before[None, 1:] - before[:-1, None]) * values[None, :],
        np.inf,
    )
    most_buckets = min(size, _MOST_BUCKETS)
    if large > 1:
        most_padding, most_buckets = _LARGE_PADDING, min(most_buckets, len(longest) // _BATCHES_OF_BUCKET)
    best = cost[0]
    starts: list[np.ndarray] = []
    while real / best[-1] < 1 - most_padding and len(starts) + 1 < most_buckets:
        # The last bucket starts at i; before it the cheapest cover of values[: i] with one bucket less.
        candidates = cost + np.concatenate([[np.inf], best[:-1]])[:, None]
        starts.append(candidates.argmin(axis=0))
        best = candidates.min(axis=0)
    end, chosen = size - 1, [int(values[-1])]
    for start in reversed(starts):
        end = int(start[end]) - 1
        chosen.append(int(values[end]))
    return tuple(reversed(chosen))


def bucket_of(length: int, buckets: Sequence[int]) -> int:
    """The shortest bucket that holds the length."""
    return buckets[bisect_left(buckets, length)]


def epoch_batches(
    lengths: Sequence[int], buckets: Sequence[int], batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """The batches of one epoch, in the order of its steps: a function of these numbers, so that a run can resume.

    Every epoch is a new permutation that holds each example once; one batch of it may be smaller. A batch is drawn
    within a bucket, but for small ones that hold what was left of one bucket and the beginning of the next.

    Args:
        lengths: of each example.
    """
    rng = Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    first = 0  # the size of the first batch, if that is the smaller one
    if batch_size >= LARGE_BATCH:
        first = len(order) % batch_size
        order = _whole_batches(order, lengths, buckets, batch_size, rng)
    else:
        order.sort(key=lambda index: bucket_of(lengths[index], buckets))  # stable: shuffled within a bucket
    batches = [order[:first]] * (first > 0)
    batches += [order[start : start + batch_size] for start in range(first, len(order), batch_size)]
    rng.shuffle(batches)
    return batches


def _whole_batches(
    order: list[int], lengths: Sequence[int], buckets: Sequence[int], batch_size: int, rng: Random
) -> list[int]:
    """A shuffled order by bucket; each has whole batches, the first also what is left over.

    Of a bucket's longest examples those that fill no batch go to the next one, others in each epoch.
    """
    order = sorted(order, key=lengths.__getitem__)  # stable: those of a length are shuffled
    left, ordered = len(order) % batch_size, [lengths[index] for index in order]
    result: list[int] = []
    for bucket in buckets:
        count = bisect_right(ordered, bucket)
        part = order[len(result) : max(len(result), count - (count - left) % batch_size)]
        rng.shuffle(part)
        result += part
    return result


@dataclass(frozen=True)
class Planned:
    """A batch. chosen: examples; length: to which they are padded; rows, counted: to which the batch is filled up, with
    rows of zeros and with positions that do not count. packed: they are one row instead, one after another, which is
    filled up to that length.
    """

    chosen: list[int]
    length: int
    rows: int
    counted: int
    packed: bool = False


def validation_batches(
    lengths: Sequence[int],
    buckets: Sequence[int],
    batch_size: int,
    rank: int = 0,
    size: int = 1,
    *,
    few_shapes: bool = False,
) -> list[Planned]:
    """One rank's batches; nothing is kept for a way back, so more examples go at once. All tokens but the first count.

    Each of `size` ranks takes every n-th example, sorted by length, so that all have about as much to do. The batches
    of a length have as many rows, but for the last, which may have fewer.

    Args:
        few_shapes: fill all batches of a length up to one shape.
    """
    by_bucket: dict[int, list[int]] = {}
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for index in order[rank::size]:
        by_bucket.setdefault(bucket_of(lengths[index], buckets), []).append(index)
    batches = []
    for length, indices in by_bucket.items():
        most = max(batch_size, VALIDATION_TOKENS // length)
        rows = -(-len(indices) // -(-len(indices) // most))
        parts = [indices[start : start + rows] for start in range(0, len(indices), rows)]
        counts = [sum(lengths[index] for index in part) for part in parts]
        for part, count in zip(parts, counts, strict=True):
            filled = (rows, max(counts)) if few_shapes else (len(part), count)
            batches.append(Planned(part, length, *filled))
    return batches
