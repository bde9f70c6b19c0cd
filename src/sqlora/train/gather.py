"""The batches of each step: which examples, in what shapes."""

from __future__ import annotations

from sqlora.distributed.group import Group
from sqlora.params.train import TrainParams
from sqlora.train.batching import batching_of
from sqlora.train.loss import Batch, make_batch
from sqlora.train.validation import Data


class Gatherer:
    """Called with a step, gives this rank's batches and the examples of all ranks.

    Args:
        few_shapes: fill every padded batch of a bucket up to one shape, for a graph that is compiled a shape.
    """

    def __init__(self, data: Data, params: TrainParams, group: Group, *, few_shapes: bool) -> None:
        self._data, self._params, self._group = data, params, group
        self._batching = batching_of(data.examples, data.buckets, params, group.size, few_shapes=few_shapes)

    @property
    def step_bytes(self) -> int:
        """About what a rank's inputs of a step take, as if all examples were as long as they are on average."""
        return int(self._batching.even_tokens * self._data.token_bytes)

    def __call__(self, step: int) -> tuple[list[Batch], list[int]]:
        """The batches of a step, counted from 0, and the numbers of its examples in the data set."""
        planned = self._batching.share(step, self._group.rank)
        batches = [make_batch(self._data.examples, one, self._data.fetch, self._params.loss) for one in planned]
        return batches, self._batching.examples(step)
