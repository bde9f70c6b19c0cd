"""The losses of a validation: over the completions' tokens, and over all tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sqlora.mlx import mx

import numpy as np

from sqlora.distributed.group import Group
from sqlora.runtime import has_cuda
from sqlora.tokenizer import Encoded
from sqlora.train.buckets import Planned, validation_batches
from sqlora.train.feed import TRANSFER_BYTES, Ready, transfer
from sqlora.train.interruption import Interrupted
from sqlora.train.loss import Batch, Fetch, make_batch
from sqlora.train.packing import packed_validation
from sqlora.train.step import Stepper

# A CUDA device, to which inputs have to be brought, keeps those of a validation up to so many bytes.
KEPT_BYTES = 128_000_000


@dataclass(frozen=True)
class Data:
    """examples: encoded; fetch: gives what goes into the model; buckets: lengths of batches, or None where examples lie
    one after another; token_bytes: of the model's input for one token.
    """

    examples: Sequence[Encoded]
    fetch: Fetch
    buckets: Sequence[int] | None
    token_bytes: int


class Validator:
    """Mean losses over the validation examples; the ranks share the work.

    Args:
        batch_size: rows that a batch may have in any case.
        few_shapes: give all batches of a length one shape.
    """

    def __init__(self, data: Data, batch_size: int, group: Group, *, few_shapes: bool = False) -> None:
        self._data, self._group = data, group
        lengths = [len(example.tokens) - 1 for example in data.examples]
        share = batch_size, group.rank, group.size
        if data.buckets is None:
            self._planned = packed_validation(lengths, *share)
        else:
            self._planned = validation_batches(lengths, data.buckets, *share, few_shapes=few_shapes)
        sizes = [one.rows * one.length * data.token_bytes for one in self._planned]
        self._parts = [self._planned[one:other] for one, other in pairwise(_bounds(sizes))]
        self._keeps = has_cuda() and sum(sizes) <= KEPT_BYTES
        self._kept: list[Ready] = []

    def losses(self, stepper: Stepper, asked: Callable[[], bool] = lambda: False) -> tuple[float, float]:
        """Mean loss of a token of a completion, and of any token, in nats.

        Args:
            asked: whether this rank is to end; looked at before each batch.

        Raises:
            Interrupted: on every rank, if one of them was asked.
        """
        losses: list[mx.array] = []
        ended = asked()
        for ready in () if ended else self._batches():
            ended = asked()
            if ended:
                break
            losses.append(stepper.losses(ready))
            if len(losses) > 1:  # the device works on one batch while the next is prepared
                mx.eval(losses[-2])
        mx.eval(losses)  # which says if another rank is gone; NumPy would not
        sums = np.array(mx.stack(losses)).astype(np.float64).sum(axis=0).tolist() if losses else [0.0, 0.0]
        # The ranks may hear of it at different moments, but all of them get to this message.
        *totals, ending = self._group.totals([*sums, *self._counts(), float(ended)])
        if ending:
            raise Interrupted
        return totals[0] / totals[2], totals[1] / totals[3]

    def _batches(self) -> Iterator[Ready]:
        if self._kept:
            yield from self._kept
            return
        ready: list[Ready] = []
        for part in self._parts:
            for one in transfer([self._make(planned) for planned in part]):
                if self._keeps:
                    ready.append(one)
                yield one
        self._kept = ready  # all of them, or the caller would not have come here

    def _make(self, planned: Planned) -> Batch:
        return make_batch(self._data.examples, planned, self._data.fetch, "all")

    def _counts(self) -> tuple[int, int]:
        """This rank's tokens of completions, and all that count."""
        rows = [self._data.examples[index] for planned in self._planned for index in planned.chosen]
        return sum(len(row.tokens) - row.prompt_tokens for row in rows), sum(len(row.tokens) - 1 for row in rows)


def _bounds(sizes: Sequence[int]) -> list[int]:
    """Where to cut, so that what is transferred together is not too large."""
    bounds, since = [0], 0
    for number, size in enumerate(sizes):
        if since and since + size > TRANSFER_BYTES:
            bounds.append(number)
            since = 0
        since += size
    return [*bounds, len(sizes)]
