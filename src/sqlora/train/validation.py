"""The losses of a validation: over the completions' tokens, and over all tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sqlora.mlx import mx

import numpy as np

from sqlora.distributed.group import Group
from sqlora.params.train import TrainParams
from sqlora.tokenizer import Encoded
from sqlora.train.buckets import bucket_of
from sqlora.train.feed import TRANSFER_BYTES, transfer
from sqlora.train.loss import Fetch, make_batch
from sqlora.train.step import Stepper

# Nothing is kept for a way back, so more examples go at once than in training.
_TOKENS = 1_024


@dataclass(frozen=True)
class Data:
    """examples: encoded; fetch: gives what goes into the model; buckets: lengths of batches; token_bytes: of the
    model's input for one token.
    """

    examples: Sequence[Encoded]
    fetch: Fetch
    buckets: Sequence[int]
    token_bytes: int

    def step_bytes(self, params: TrainParams) -> int:
        """At most what a step's inputs take."""
        return params.batch_size * params.gradient_accumulation * self.buckets[-1] * self.token_bytes


def validation_losses(stepper: Stepper, data: Data, batch_size: int, group: Group) -> tuple[float, float]:
    """Mean loss of a token of a completion, and of any token, in nats; the ranks share the work.

    Every rank takes every n-th example, sorted by length, so that all have about as much to do.
    """
    lengths = [len(example.tokens) - 1 for example in data.examples]
    by_bucket: dict[int, list[int]] = {}
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for index in order[group.rank :: group.size]:
        by_bucket.setdefault(bucket_of(lengths[index], data.buckets), []).append(index)
    planned: list[tuple[list[int], int]] = []
    for length, indices in by_bucket.items():
        rows = max(batch_size, _TOKENS // length)
        planned += [(indices[start : start + rows], length) for start in range(0, len(indices), rows)]
    losses: list[mx.array] = []
    counts = [0, 0]
    for one, other in pairwise(_bounds([len(rows) * length * data.token_bytes for rows, length in planned])):
        batches = [
            make_batch(data.examples, rows, data.fetch, length=length, kind="all")
            for rows, length in planned[one:other]
        ]
        counts[0] += sum(int(batch.answers.sum()) for batch in batches)
        counts[1] += sum(batch.counted for batch in batches)
        for ready in transfer(batches):
            losses.append(stepper.losses(ready))
            if len(losses) > 1:  # the device works on one batch while the next is prepared
                mx.eval(losses[-2])
    sums = np.array(mx.stack(losses)).astype(np.float64).sum(axis=0).tolist() if losses else [0.0, 0.0]
    totals = group.totals([*sums, *counts])
    return totals[0] / totals[2], totals[1] / totals[3]


def _bounds(sizes: Sequence[int]) -> list[int]:
    """Where to cut, so that what is transferred together is not too large."""
    bounds, since = [0], 0
    for number, size in enumerate(sizes):
        if since and since + size > TRANSFER_BYTES:
            bounds.append(number)
            since = 0
        since += size
    return [*bounds, len(sizes)]
