"""The losses of a validation: over the completions' tokens, and over all tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sqlora.mlx import mx

import numpy as np

from sqlora.distributed.group import Group
from sqlora.tokenizer import Encoded
from sqlora.train.buckets import validation_batches
from sqlora.train.feed import TRANSFER_BYTES, transfer
from sqlora.train.interruption import Interrupted
from sqlora.train.loss import Fetch, make_batch
from sqlora.train.step import Stepper


@dataclass(frozen=True)
class Data:
    """examples: encoded; fetch: gives what goes into the model; buckets: lengths of batches; token_bytes: of the
    model's input for one token.
    """

    examples: Sequence[Encoded]
    fetch: Fetch
    buckets: Sequence[int]
    token_bytes: int


def validation_losses(
    stepper: Stepper, data: Data, batch_size: int, group: Group, asked: Callable[[], bool] = lambda: False
) -> tuple[float, float]:
    """Mean loss of a token of a completion, and of any token, in nats; the ranks share the work.

    Args:
        asked: whether this rank is to end; looked at before each batch.

    Raises:
        Interrupted: on every rank, if one of them was asked.
    """
    lengths = [len(example.tokens) - 1 for example in data.examples]
    planned = list(validation_batches(lengths, data.buckets, batch_size, group.rank, group.size))
    losses: list[mx.array] = []
    counts = [0, 0]
    ended = asked()
    for one, other in pairwise(_bounds([len(rows) * length * data.token_bytes for rows, length in planned])):
        if ended:
            break
        batches = [
            make_batch(data.examples, rows, data.fetch, length=length, kind="all")
            for rows, length in planned[one:other]
        ]
        counts[0] += sum(int(batch.answers.sum()) for batch in batches)
        counts[1] += sum(batch.counted for batch in batches)
        for ready in transfer(batches):
            ended = ended or asked()
            if ended:
                break
            losses.append(stepper.losses(ready))
            if len(losses) > 1:  # the device works on one batch while the next is prepared
                mx.eval(losses[-2])
    sums = np.array(mx.stack(losses)).astype(np.float64).sum(axis=0).tolist() if losses else [0.0, 0.0]
    # The ranks may hear of it at different moments, but all of them get to this message.
    *totals, ending = group.totals([*sums, *counts, float(ended)])
    if ending:
        raise Interrupted
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
