"""Batches without padding: examples one after another, and batches of about equal numbers of tokens.

Then a batch has one of a few shapes, however long its examples are, and the longest examples do not decide about the
memory of all batches. It takes an attention that knows where each example begins: that of sqlora.train.cuda.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from heapq import heapify, heapreplace
from random import Random

from sqlora.train.buckets import VALIDATION_TOKENS, Planned

_PART = 100  # a batch is filled up by less than this part of it, so that there are fewer numbers of tokens
MOST_GRAIN = 8  # to a multiple of so many at most, which products need that read many bytes at once
_LEAST = 4  # examples of a batch, for exchanges between them: of two, each would always meet about the same others
_ROUNDS = 6  # of exchanges; behind them hardly anything changes


def even_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of one epoch, in the order of its steps: a function of these numbers, so that a run can resume.

    Every epoch is a new permutation that holds each example once; one batch of it may be smaller. Each of a batch's
    examples is drawn from another part of all examples sorted by length (stratified sampling), and unless they are very
    small, some are exchanged then, so that all batches have about as many tokens.

    Args:
        lengths: of each example.
    """
    rng = Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    left = len(order) % batch_size
    batches = [order[:left]] * (left > 0)
    whole = sorted(order[left:], key=lengths.__getitem__)  # stable: those of a length are shuffled
    count = len(whole) // batch_size
    parts = [whole[start : start + count] for start in range(0, len(whole), count)] if count else []
    for part in parts:
        rng.shuffle(part)
    drawn = [list(batch) for batch in zip(*parts, strict=True)]
    if drawn and batch_size >= _LEAST:
        _even_out(drawn, lengths, _grain(sum(lengths[row] for row in whole) // count))
    batches += drawn
    rng.shuffle(batches)
    return batches


def level(rows: Sequence[int], lengths: Sequence[int], count: int) -> list[list[int]]:
    """So many shares of about equal numbers of tokens; some are empty if there are fewer examples.

    The longest examples first, each goes to the share that has fewest tokens (Graham, 1969: longest processing time);
    then some are exchanged.

    Args:
        rows: examples; lengths: of all examples of the data set.
    """
    shares: list[list[int]] = [[] for _ in range(count)]
    heap = [(0, number) for number in range(count)]
    heapify(heap)
    for row in sorted(rows, key=lambda row: -lengths[row]):
        tokens, number = heap[0]
        shares[number].append(row)
        heapreplace(heap, (tokens + lengths[row], number))
    tokens = sum([lengths[row] for row in rows])
    _even_out(shares, lengths, _grain(tokens // count))
    return shares


def _even_out(groups: Sequence[list[int]], lengths: Sequence[int], apart: int) -> None:
    """Exchange examples, one for one, until all groups have about as many tokens.

    In each round the emptiest group and the fullest make the exchange that brings them closest together, the second and
    the last but one, and so on. Where no pair finds any, each group tries its neighbor's partner, which matters where
    there are few; if that finds none either, it ends.

    Args:
        groups: of examples, whose order changes.
        apart: groups whose tokens differ by no more stay as they are.
    """
    half, shift = len(groups) // 2, 0
    weighed = [(sum([lengths[row] for row in group]), number, group) for number, group in enumerate(groups)]
    for _ in range(_ROUNDS):
        weighed.sort()
        changed = False
        for place in range(half):
            partner = -1 - (place + shift) % half
            (less, first, low), (more, second, high) = weighed[place], weighed[partner]
            if more - less > apart:
                given = _exchange(low, high, lengths, more - less)
                changed |= given > 0
                weighed[place], weighed[partner] = (less + given, first, low), (more - given, second, high)
        if not changed and shift + 1 >= min(half, 2):
            break
        shift = 0 if changed else 1


def _exchange(low: list[int], high: list[int], lengths: Sequence[int], difference: int) -> int:
    """Exchange one example for one so that two groups have most equal numbers of tokens, if any exchange does better
    than none.

    Args:
        low, high: the emptier group, which gets sorted, and the fuller; difference: of their tokens.

    Returns:
        How many tokens the emptier one gained.
    """
    low.sort(key=lengths.__getitem__)
    offered = [lengths[row] for row in low]
    least, given, taken = difference, 0, 0
    for place, row in enumerate(high):
        length = lengths[row]
        # The best for half of the difference are on both sides of it.
        above = bisect_left(offered, length - difference / 2)
        for candidate in range(max(0, above - 1), min(above + 1, len(offered))):
            left = abs(difference - 2 * (length - offered[candidate]))
            if left < least:
                least, given, taken = left, place, candidate
        if least < 2:
            break
    if least == difference:
        return 0
    low[taken], high[given] = high[given], low[taken]
    return lengths[low[taken]] - lengths[high[given]]


def _grain(tokens: int) -> int:
    """To a multiple of what a batch of about so many is filled up."""
    return min(MOST_GRAIN, 1 << max(0, (tokens // _PART).bit_length() - 1))


def tokens_of(rows: Sequence[int], lengths: Sequence[int]) -> int:
    """Of a batch of these examples, filled up to a multiple of a power of two, by less than a hundredth."""
    tokens = sum([lengths[row] for row in rows])
    grain = _grain(tokens)
    return -(-tokens // grain) * grain


def packed_validation(lengths: Sequence[int], batch_size: int, rank: int = 0, size: int = 1) -> list[Planned]:
    """One rank's batches of a validation, all of one shape; as buckets.validation_batches in everything else."""
    mine = sorted(range(len(lengths)), key=lengths.__getitem__)[rank::size]
    tokens = sum(lengths[index] for index in mine)
    most = max(VALIDATION_TOKENS, batch_size * sum(lengths) // len(lengths))
    batches = [batch for batch in level(mine, lengths, max(1, -(-tokens // most))) if batch]
    longest = max((tokens_of(batch, lengths) for batch in batches), default=0)
    counted = max((sum(lengths[index] for index in batch) for batch in batches), default=0)
    return [Planned(batch, longest, 1, counted, packed=True) for batch in batches]
