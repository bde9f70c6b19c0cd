"""Which examples each step has, on which rank and in what shapes: padded to a few lengths, or one after another."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from sqlora.params.train import TrainParams
from sqlora.tokenizer import Encoded
from sqlora.train.buckets import MOST_PADDING, Planned, batch_indices, choose_lengths
from sqlora.train.division import divide, most_rows, rows_of_step
from sqlora.train.loss import counted_from, most_counted
from sqlora.train.packing import MOST_GRAIN, even_batches, level, tokens_of

# What batches are filled up by at most. With less there are more shapes, each of which costs a GPU the time of a step.
_FILLING = 0.02
_SMALL = 256  # smaller ones, whose steps are short, by as much as padding adds
_LOOKED_AT = 20_000  # batches of a run; later ones are of the same kinds


@dataclass(frozen=True)
class Sizes:
    """Of each example. lengths: tokens that go into the model; counts: how many of the next ones the loss counts."""

    lengths: Sequence[int]
    counts: Sequence[int]


class Batching(Protocol):
    """The batches of a run."""

    def examples(self, step: int) -> list[int]:
        """Of all ranks in a step, counted from 0; the same however many ranks there are."""

    def share(self, step: int, rank: int) -> list[Planned]:
        """A rank's batches of a step; none if there are fewer examples than ranks."""

    @property
    def even_tokens(self) -> float:
        """What a rank's step would have if all examples were as long as they are on average."""


class Padded:
    """Batches of examples that are padded to a bucket.

    Args:
        few_shapes: fill every batch of a bucket up to one shape, for a graph that is compiled a shape.
    """

    def __init__(
        self, sizes: Sizes, buckets: Sequence[int], params: TrainParams, ranks: int, *, few_shapes: bool
    ) -> None:
        self._sizes, self._buckets, self._params, self._ranks = sizes, buckets, params, ranks
        self._few_shapes = few_shapes

    def examples(self, step: int) -> list[int]:
        """See Batching."""
        return [index for part in self._parts(step) for index in part]

    def share(self, step: int, rank: int) -> list[Planned]:
        """See Batching."""
        lengths, counts = self._sizes.lengths, self._sizes.counts
        return [
            Planned(
                chosen,
                length,
                self._rows if self._few_shapes else len(chosen),
                self._counted[length] if self._few_shapes else sum(counts[index] for index in chosen),
            )
            for chosen, length in divide(
                self._parts(step), lengths, self._buckets, self._params.batch_size, rank, self._ranks
            )
        ]

    @property
    def even_tokens(self) -> float:
        """See Batching."""
        size, count = self._params.batch_size, self._params.gradient_accumulation
        return rows_of_step(size, count, self._ranks, filled=self._few_shapes) * _mean(self._sizes.lengths)

    def _parts(self, step: int) -> list[list[int]]:
        lengths, params = self._sizes.lengths, self._params
        numbers = range(step * params.gradient_accumulation, (step + 1) * params.gradient_accumulation)
        return [batch_indices(one, lengths, self._buckets, params.batch_size, params.seed) for one in numbers]

    @cached_property
    def _rows(self) -> int:
        return most_rows(self._params.batch_size, self._params.gradient_accumulation, self._ranks)

    @cached_property
    def _counted(self) -> dict[int, int]:
        return most_counted(list(zip(self._sizes.lengths, self._sizes.counts, strict=True)), self._buckets, self._rows)


class Packed:
    """Batches of examples one after another, filled up to one of few numbers of tokens.

    The ranks share a step's examples so that all have about as many tokens.
    """

    def __init__(self, sizes: Sizes, params: TrainParams, ranks: int) -> None:
        self._sizes, self._params, self._ranks = sizes, params, ranks
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    def examples(self, step: int) -> list[int]:
        """See Batching."""
        return [index for part in self._parts(step) for index in part]

    def share(self, step: int, rank: int) -> list[Planned]:
        """See Batching."""
        return [self._planned(chosen) for chosen in self._shares(step)[rank]]

    @property
    def even_tokens(self) -> float:
        """See Batching."""
        size, count = self._params.batch_size, self._params.gradient_accumulation
        return rows_of_step(size, count, self._ranks, filled=False) * _mean(self._sizes.lengths)

    def _parts(self, step: int) -> list[list[int]]:
        count = self._params.gradient_accumulation
        return [self._drawn(number) for number in range(step * count, (step + 1) * count)]

    def _drawn(self, number: int) -> list[int]:
        lengths, size = self._sizes.lengths, self._params.batch_size
        epoch, place = divmod(number, -(-len(lengths) // size))
        if self._epoch[0] != epoch:
            self._epoch = epoch, even_batches(lengths, size, self._params.seed, epoch)
        return self._epoch[1][place]

    def _shares(self, step: int) -> list[list[list[int]]]:
        """Each rank's batches."""
        parts = self._parts(step)
        if self._ranks == 1:
            return [parts]
        rows = [row for part in parts for row in part]
        # With accumulation fewer batches: four ranks take one each where one takes four.
        each = -(-len(rows) // self._ranks)
        count = -(-each // self._params.batch_size)
        shares = level(rows, self._sizes.lengths, self._ranks * count)
        shares.sort(key=lambda share: -tokens_of(share, self._sizes.lengths))  # the first rank has most, as a plan says
        return [[share for share in shares[rank :: self._ranks] if share] for rank in range(self._ranks)]

    def _planned(self, chosen: list[int]) -> Planned:
        tokens, counted = tokens_of(chosen, self._sizes.lengths), sum(self._sizes.counts[row] for row in chosen)
        place = bisect_left(self._shapes, (tokens,))
        if place < len(self._shapes):
            tokens, most = self._shapes[place]
            # Of a batch that was not looked at, more may count.
            counted = most if counted <= most else -(-counted // MOST_GRAIN) * MOST_GRAIN
        return Planned(chosen, tokens, 1, counted, packed=True)

    @cached_property
    def _shapes(self) -> list[tuple[int, int]]:
        """In rising order the tokens that batches are filled up to, and the most that count in one of them."""
        steps = min(self._params.iterations, -(-_LOOKED_AT // self._params.gradient_accumulation))
        found = [
            (tokens_of(chosen, self._sizes.lengths), sum(self._sizes.counts[row] for row in chosen))
            for step in range(steps)
            for share in self._shares(step)
            for chosen in share
        ]
        filling = _FILLING if sum(tokens for tokens, _ in found) >= _SMALL * len(found) else MOST_PADDING
        shapes = choose_lengths([tokens for tokens, _ in found], filling)
        most = dict.fromkeys(shapes, 0)
        for tokens, counted in found:
            shape = shapes[bisect_left(shapes, tokens)]
            most[shape] = max(most[shape], counted)
        return list(most.items())


def batching_of(
    examples: Sequence[Encoded],
    buckets: Sequence[int] | None,
    params: TrainParams,
    ranks: int,
    *,
    few_shapes: bool = False,
) -> Batching:
    """The batches of a run with these examples.

    Args:
        buckets: to whose lengths examples are padded; None if they are packed.
    """
    lengths = tuple(len(one.tokens) - 1 for one in examples)
    counts = [length - counted_from(one, params.loss) for one, length in zip(examples, lengths, strict=True)]
    sizes = Sizes(lengths, counts)
    return (
        Packed(sizes, params, ranks)
        if buckets is None
        else Padded(sizes, buckets, params, ranks, few_shapes=few_shapes)
    )


def used(batching: Batching, steps: int, count: int, ranks: Sequence[int] | None = None) -> list[int]:
    """The examples that so many steps see, each once, in the order of the data set.

    Args:
        count: of all examples.
        ranks: those that matter; all if they are left out.
    """
    found: set[int] = set()
    for step in range(steps):
        if ranks is None:
            found.update(batching.examples(step))
        else:
            found.update(row for rank in ranks for planned in batching.share(step, rank) for row in planned.chosen)
        if len(found) == count:
            break
    return sorted(found)


def _mean(lengths: Sequence[int]) -> float:
    return sum(lengths) / len(lengths)
