"""Divides a step's examples over the ranks: the same examples in the same step, however many ranks there are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from sqlora.train.buckets import bucket_of


def divide(
    parts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    buckets: Sequence[int],
    batch_size: int,
    rank: int = 0,
    size: int = 1,
) -> list[tuple[list[int], int]]:
    """One rank's share of a step.

    Several ranks deal out the rows of all parts, longest first, so that all get as many rows of nearly the same
    lengths, and with accumulation fewer batches: four ranks take one batch each where one takes four.

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
    mine = rows[rank::size]
    count = -(-len(mine) // batch_size)
    bounds = [len(mine) * number // count for number in range(count + 1)] if count else []
    return [(mine[one:other], bucket_of(lengths[mine[one]], buckets)) for one, other in pairwise(bounds)]


def most_rows(batch_size: int, accumulation: int, size: int) -> int:
    """The rows that a batch of a rank has at most."""
    if size == 1:
        return batch_size
    mine = -(-batch_size * accumulation // size)
    # The last step of an epoch has fewer rows, which may be divided into larger batches.
    return max(-(-rows // -(-rows // batch_size)) for rows in range(1, mine + 1))


def rows_of_step(batch_size: int, accumulation: int, size: int, *, filled: bool) -> int:
    """The rows that a whole step of the first rank has; with those that fill up its batches' shape, if `filled`."""
    mine = -(-batch_size * accumulation // size)
    if size == 1 or not filled:
        return mine
    return -(-mine // batch_size) * most_rows(batch_size, accumulation, size)
