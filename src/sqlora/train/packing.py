"""Batches without padding: examples one after another, and batches of about equal numbers of tokens.

Then a batch has one of a few shapes, however long its examples are, and the longest examples do not decide about the
memory of all batches. It takes an attention that knows where each example begins: that of sqlora.train.cuda.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heapreplace
from random import Random

from sqlora.train.buckets import VALIDATION_TOKENS, Planned

_PART = 100  # a batch is filled up by less than this part of it, so that there are fewer numbers of tokens
MOST_GRAIN = 8  # to a multiple of so many at most, which products need that read many bytes at once


def even_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of one epoch, in the order of its steps: a function of these numbers, so that a run can resume.

    Every epoch is a new permutation that holds each example once; one batch of it may be smaller. Each of a batch's
    examples is drawn from another part of all examples sorted by length (stratified sampling), so that all batches have
    about as many tokens.

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
    batches += [list(batch) for batch in zip(*parts, strict=True)]
    rng.shuffle(batches)
    return batches


def level(rows: Sequence[int], lengths: Sequence[int], count: int) -> list[list[int]]:
    """So many shares of about equal numbers of tokens; some are empty if there are fewer examples.

    The longest examples first, each goes to the share that has fewest tokens (Graham, 1969: longest processing time).

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
    return shares


def tokens_of(rows: Sequence[int], lengths: Sequence[int]) -> int:
    """Of a batch of these examples, filled up to a multiple of a power of two, by less than a hundredth."""
    tokens = sum(lengths[row] for row in rows)
    grain = min(MOST_GRAIN, 1 << max(0, (tokens // _PART).bit_length() - 1))
    return -(-tokens // grain) * grain


def packed_validation(lengths: Sequence[int], batch_size: int, rank: int = 0, size: int = 1) -> list[Planned]:
    """One rank's batches of a validation, all of one shape; as buckets.validation_batches in everything else."""
    mine = sorted(range(len(lengths)), key=lengths.__getitem__)[rank::size]
    tokens = sum(lengths[index] for index in mine)
    most = max(VALIDATION_TOKENS, batch_size * sum(lengths) // len(lengths))
    batches = [batch for batch in level(mine, lengths, -(-tokens // most)) if batch]
    longest = max((tokens_of(batch, lengths) for batch in batches), default=0)
    counted = max((sum(lengths[index] for index in batch) for batch in batches), default=0)
    return [Planned(batch, longest, 1, counted, packed=True) for batch in batches]
