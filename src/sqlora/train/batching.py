"""Which examples each step has, on which rank and in what shapes: padded to a few lengths, or one after another."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from sqlora.params.train import TrainParams
from sqlora.tokenizer import Encoded
from sqlora.train.buckets import MOST_PADDING, Planned, choose_lengths, epoch_batches
from sqlora.train.division import divide, most_rows, rows_of_step
from sqlora.train.loss import counted_from, most_counted
from sqlora.train.packing import MOST_GRAIN, even_batches, level, tokens_of

# The share by which batches are filled up at most, beyond what tokens_of adds. With less there are more shapes, each of
# which costs a GPU a step's time.
MOST_FILLING = 0.01
_SMALL = 256  # tokens; smaller batches, whose steps are short, have as much as padding adds
_BATCHES_LOOKED_AT, _EXAMPLES_LOOKED_AT = 20_000, 60_000  # of a run; later ones are of the same kinds


@dataclass(frozen=True)
class Sizes:
    """Of each example. lengths: tokens that go into the model; counts: how many of the next ones the loss counts."""

    lengths: Sequence[int]
    counts: Sequence[int]


class Batching(Protocol):
    """The batches of a run. epoch: in how many steps every example has been seen."""

    epoch: int

    def examples(self, step: int) -> list[int]:
        """Of all ranks in a step, counted from 0; the same however many ranks there are."""

    def rows(self, step: int, rank: int) -> list[list[int]]:
        """A rank's batches of a step; none if there are fewer examples than ranks."""

    def share(self, step: int, rank: int) -> list[Planned]:
        """The same with their shapes."""

    @property
    def even_tokens(self) -> float:
        """What a rank's step would have if all examples were as long as they are on average."""


class _Drawn:
    """What padded and packed batches have in common.

    Args:
        filled: whether batches are filled up with empty rows.
    """

    def __init__(self, sizes: Sizes, params: TrainParams, ranks: int, *, filled: bool) -> None:
        self._sizes, self._params, self._ranks, self._filled = sizes, params, ranks, filled
        self._batches = -(-len(sizes.lengths) // params.batch_size)
        self._epochs: dict[int, list[list[int]]] = {}
        self.epoch = -(-self._batches // params.gradient_accumulation)

    def examples(self, step: int) -> list[int]:
        """See Batching."""
        return [index for part in self._parts(step) for index in part]

    @property
    def even_tokens(self) -> float:
        """See Batching."""
        size, count, lengths = self._params.batch_size, self._params.gradient_accumulation, self._sizes.lengths
        return rows_of_step(size, count, self._ranks, filled=self._filled) * sum(lengths) / len(lengths)

    def _draw(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch: a function of its number and the seed, so that a run can resume anywhere."""
        raise NotImplementedError

    def _parts(self, step: int) -> list[list[int]]:
        """The batches that a step adds up."""
        count = self._params.gradient_accumulation
        return [self._batch(number) for number in range(step * count, (step + 1) * count)]

    def _batch(self, number: int) -> list[int]:
        epoch, place = divmod(number, self._batches)
        if epoch not in self._epochs:  # two are kept, for steps between them
            self._epochs = dict([*list(self._epochs.items())[-1:], (epoch, self._draw(epoch))])
        return self._epochs[epoch][place]


class Padded(_Drawn):
    """Batches of examples that are padded to a bucket.

    Args:
        few_shapes: fill every batch of a bucket up to one shape, for a graph that is compiled a shape.
    """

    def __init__(
        self, sizes: Sizes, buckets: Sequence[int], params: TrainParams, ranks: int, *, few_shapes: bool
    ) -> None:
        super().__init__(sizes, params, ranks, filled=few_shapes)
        self._buckets = buckets

    def rows(self, step: int, rank: int) -> list[list[int]]:
        """See Batching."""
        return [chosen for chosen, _ in self._divided(step, rank)]

    def share(self, step: int, rank: int) -> list[Planned]:
        """See Batching."""
        return [
            Planned(
                chosen,
                length,
                self._rows if self._filled else len(chosen),
                self._counted[length] if self._filled else sum(self._sizes.counts[index] for index in chosen),
            )
            for chosen, length in self._divided(step, rank)
        ]

    def _draw(self, epoch: int) -> list[list[int]]:
        return epoch_batches(self._sizes.lengths, self._buckets, self._params.batch_size, self._params.seed, epoch)

    def _divided(self, step: int, rank: int) -> list[tuple[list[int], int]]:
        size = self._params.batch_size
        return divide(self._parts(step), self._sizes.lengths, self._buckets, size, rank, self._ranks)

    @cached_property
    def _rows(self) -> int:
        return most_rows(self._params.batch_size, self._params.gradient_accumulation, self._ranks)

    @cached_property
    def _counted(self) -> dict[int, int]:
        return most_counted(list(zip(self._sizes.lengths, self._sizes.counts, strict=True)), self._buckets, self._rows)


class Packed(_Drawn):
    """Batches of examples one after another, filled up to one of few numbers of tokens.

    The ranks share a step's examples so that all have about as many tokens.
    """

    def __init__(self, sizes: Sizes, params: TrainParams, ranks: int) -> None:
        super().__init__(sizes, params, ranks, filled=False)

    def rows(self, step: int, rank: int) -> list[list[int]]:
        """See Batching."""
        return (self._known[step] if step < len(self._known) else self._shares(step))[rank]

    def share(self, step: int, rank: int) -> list[Planned]:
        """See Batching."""
        return [self._planned(chosen) for chosen in self.rows(step, rank)]

    def _draw(self, epoch: int) -> list[list[int]]:
        return even_batches(self._sizes.lengths, self._params.batch_size, self._params.seed, epoch)

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
    def _known(self) -> list[list[list[list[int]]]]:
        """The shares of the steps that are looked at."""
        most_batches = min(_BATCHES_LOOKED_AT, -(-_EXAMPLES_LOOKED_AT // self._params.batch_size))
        most_steps = -(-most_batches // self._params.gradient_accumulation)
        return [self._shares(step) for step in range(min(self._params.iterations, most_steps))]

    @cached_property
    def _shapes(self) -> list[tuple[int, int]]:
        """In rising order the tokens that batches are filled up to, and the most that count in one of them."""
        found = [
            (tokens_of(chosen, self._sizes.lengths), sum([self._sizes.counts[row] for row in chosen]))
            for shares in self._known
            for share in shares
            for chosen in share
        ]
        filling = MOST_FILLING if sum(tokens for tokens, _ in found) >= _SMALL * len(found) else MOST_PADDING
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
    if ranks is None:
        if steps >= batching.epoch:
            return list(range(count))
        return sorted({row for step in range(steps) for row in batching.examples(step)})
    found: set[int] = set()
    for step in range(steps):
        found.update(row for rank in ranks for batch in batching.rows(step, rank) for row in batch)
        if len(found) == count:
            break
    return sorted(found)
