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
        return [(list(part), _padded(part, lengths, buckets)) for part in parts]
    rows = sorted((row for part in parts for row in part), key=lambda row: -bucket_of(lengths[row], buckets))
    start, end = _bounds([bucket_of(lengths[row], buckets) for row in rows], size)[rank]
    mine = rows[start:end]
    count = -(-len(mine) // batch_size)
    bounds = [len(mine) * number // count for number in range(count + 1)] if count else []
    batches = [mine[one:other] for one, other in pairwise(bounds)]
    return [(batch, _padded(batch, lengths, buckets)) for batch in batches]


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


def _padded(rows: Sequence[int], lengths: Sequence[int], buckets: Sequence[int]) -> int:
    return bucket_of(max(lengths[row] for row in rows), buckets)


def _bounds(padded: Sequence[int], size: int) -> list[tuple[int, int]]:
    """Cut a falling sequence of padded lengths into `size` pieces whose largest padded number of tokens is least."""
    counts = range(1, len(padded) + 1)
    most = sorted({length * count for length in set(padded) for count in counts})
    low, high = 0, len(most) - 1
    while low < high:  # the least number of tokens with which `size` pieces reach
        middle = (low + high) // 2
        if len(_pieces(padded, most[middle])) <= size:
            high = middle
        else:
            low = middle + 1
    pieces = _pieces(padded, most[low]) if padded else []
    return pieces + [(len(padded), len(padded))] * (size - len(pieces))


def _pieces(padded: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Each as long as it may be: its rows are padded to its first one's length."""
    pieces, start = [], 0
    while start < len(padded):
        end = min(len(padded), start + max(1, most // padded[start]))
        pieces.append((start, end))
        start = end
    return pieces
