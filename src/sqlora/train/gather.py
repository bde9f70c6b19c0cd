"""The batches of each step: which examples, in what shapes."""

from __future__ import annotations

from sqlora.distributed.group import Group
from sqlora.params.train import TrainParams
from sqlora.train.buckets import batch_indices
from sqlora.train.division import divide, most_rows, rows_of_step
from sqlora.train.loss import Batch, counted_from, make_batch, most_counted
from sqlora.train.validation import Data


class Gatherer:
    """Called with a step, gives this rank's batches and the examples of all ranks.

    Args:
        few_shapes: fill every batch of a bucket up to one shape, for a graph that is compiled a shape.
    """

    def __init__(self, data: Data, params: TrainParams, group: Group, *, few_shapes: bool) -> None:
        self._data, self._params, self._group = data, params, group
        self._lengths = [len(example.tokens) - 1 for example in data.examples]
        self._rows = 0
        self._counted: dict[int, int] = {}
        if few_shapes:
            self._rows = most_rows(params.batch_size, params.gradient_accumulation, group.size)
            counts = [len(one.tokens) - 1 - counted_from(one, params.loss) for one in data.examples]
            self._counted = most_counted(list(zip(self._lengths, counts, strict=True)), data.buckets, self._rows)

    @property
    def step_bytes(self) -> int:
        """About what a rank's inputs of a step take, as if all examples were as long as they are on average."""
        count, size = self._params.gradient_accumulation, self._params.batch_size
        rows = rows_of_step(size, count, self._group.size, filled=bool(self._rows))
        return int(rows * sum(self._lengths) / len(self._lengths) * self._data.token_bytes)

    def __call__(self, step: int) -> tuple[list[Batch], list[int]]:
        """The batches of a step, counted from 0, and the numbers of its examples in the data set."""
        params, data, group = self._params, self._data, self._group
        size, count = params.batch_size, params.gradient_accumulation
        numbers = range(step * count, (step + 1) * count)
        parts = [batch_indices(number, self._lengths, data.buckets, size, params.seed) for number in numbers]
        batches = [
            make_batch(
                data.examples,
                chosen,
                data.fetch,
                length=length,
                kind=params.loss,
                rows=self._rows,
                counted=self._counted.get(length, 0),
            )
            for chosen, length in divide(parts, self._lengths, data.buckets, size, group.rank, group.size)
        ]
        return batches, [index for part in parts for index in part]
