"""Divides a step's examples over the ranks: the same examples in the same step, however many ranks there are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from sqlora.train.buckets import batch_indices, bucket_of


def divide(
    parts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    buckets: Sequence[int],
    batch_size: int,
    rank: int = 0,
    size: int = 1,
) -> list[tuple[list[int], int]]:
    """One rank's share of a step.

    Several ranks divide the rows of all parts, so that with accumulation each has fewer batches and none waits.

    Args:
        parts: examples of each batch that the step adds up.
        lengths: of each example of the data set.
        batch_size: most rows of a batch.

    Returns:
        Batches of examples with the length to pad to; none if there are fewer examples than ranks.
    """
    if size == 1:
        return [(list(part), bucket_of(max(lengths[row] for row in part), buckets)) for part in parts]
    rows = sorted((row for part in parts for row in part), key=lambda row: -bucket_of(lengths[row], buckets))
    padded = [bucket_of(lengths[row], buckets) for row in rows]
    start, end = _pieces(padded, batch_size, size)[rank]
    return [(rows[one:other], padded[one]) for one, other in _batches(start, end, batch_size)]


def used_by(
    ranks: Iterable[int],
    size: int,
    steps: int,
    accumulation: int,
    lengths: Sequence[int],
    buckets: Sequence[int],
    batch_size: int,
    seed: int,
) -> list[int]:
    """The examples that some of `size` ranks see in so many steps, in the order of the data set."""
    used: set[int] = set()
    for step in range(steps):
        numbers = range(step * accumulation, (step + 1) * accumulation)
        parts = [batch_indices(number, lengths, buckets, batch_size, seed) for number in numbers]
        for rank in ranks:
            used.update(row for batch, _ in divide(parts, lengths, buckets, batch_size, rank, size) for row in batch)
    return sorted(used)


def _pieces(padded: Sequence[int], batch_size: int, size: int) -> list[tuple[int, int]]:
    """Cut a falling sequence of padded lengths into `size` pieces, some of them empty, so that the largest is least."""
    low, high = 0, sum(padded) + max(padded) * len(padded)
    while low < high:
        middle = (low + high) // 2
        if len(_greedy(padded, batch_size, middle)) <= size:
            high = middle
        else:
            low = middle + 1
    pieces = _greedy(padded, batch_size, low)
    return pieces + [(len(padded), len(padded))] * (size - len(pieces))


def _greedy(padded: Sequence[int], batch_size: int, most: int) -> list[tuple[int, int]]:
    """Pieces of at most so many tokens, padding included, but of one row at least; each as long as it may be."""
    pieces, start = [], 0
    while start < len(padded):
        end = start + 1
        while end < len(padded) and _tokens(padded, start, end + 1, batch_size) <= most:
            end += 1
        pieces.append((start, end))
        start = end
    return pieces


def _tokens(padded: Sequence[int], start: int, end: int, batch_size: int) -> int:
    return sum((other - one) * padded[one] for one, other in _batches(start, end, batch_size))


def _batches(start: int, end: int, batch_size: int) -> list[tuple[int, int]]:
    """The fewest batches for so many rows, of nearly the same size."""
    count = -(-(end - start) // batch_size)
    return list(pairwise(start + (end - start) * number // count for number in range(count + 1))) if count else []
