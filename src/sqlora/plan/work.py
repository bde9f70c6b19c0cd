"""What a run's examples ask of memory: the batches that it will make, by the functions that make them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sqlora.params.train import TrainParams
from sqlora.tokenizer import Encoded
from sqlora.train.batching import Batching, Packed, Padded, Sizes, used
from sqlora.train.buckets import (
    FROZEN_PADDING,
    VALIDATION_PADDING,
    Planned,
    bucket_of,
    choose_lengths,
    validation_batches,
)
from sqlora.train.packing import packed_validation

_MOST_BATCHES, _MOST_EXAMPLES = 20_000, 400_000  # of a longer run the rest has the same kinds of batches

# Assumed where there is no dataset: tokens of a WikiSQL example that go into the model and of its answer, at these
# shares of the examples. Measured on the 1,000 training examples of the seeded split in Mistral's tokens; the demo's
# examples in the demo's tokens are within 15% of it.
_SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
_LENGTHS = (60, 75, 82, 91, 102, 118, 131, 159, 221)
_ANSWERS = (17, 26, 29, 31, 36, 42, 46, 56, 81)


@dataclass(frozen=True)
class Size:
    """An example: length, the tokens that go into the model; answer, how many of the next tokens are the answer's."""

    length: int
    answer: int


@dataclass(frozen=True, order=True)
class Load:
    """A batch: rows, padded length, and how many positions the loss counts; packed: as in Planned."""

    rows: int
    length: int
    counted: int
    packed: bool = False


@dataclass(frozen=True)
class Work:
    """train, valid: the distinct batches of both; mean_tokens: of a training batch, padded.

    step_tokens: what the first rank's inputs of a step have, all that fills up their shape included; even_tokens: what
    they would have if all examples were as long as they are on average; valid_tokens: of all batches of a validation.

    state_tokens: of all examples whose frozen states are wanted; states: lengths of the batches that compute these,
    each with how many examples it has.
    """

    train: tuple[Load, ...]
    valid: tuple[Load, ...]
    mean_tokens: float
    step_tokens: float
    even_tokens: float
    valid_tokens: int
    state_tokens: int
    states: tuple[tuple[int, int], ...]


def sizes_of(examples: Sequence[Encoded]) -> list[Size]:
    """Of encoded examples."""
    return [Size(len(one.tokens) - 1, len(one.tokens) - one.prompt_tokens) for one in examples]


def assumed_sizes(count: int) -> list[Size]:
    """As many examples of WikiSQL's usual lengths."""
    places = (np.arange(count) + 0.5) / count
    places[-1] = 1.0  # the longest one decides
    lengths, answers = (np.interp(places, _SHARES, values).round().astype(int) for values in (_LENGTHS, _ANSWERS))
    return [Size(int(length), int(answer)) for length, answer in zip(lengths, answers, strict=True)]


def work_of(
    train: Sequence[Size],
    valid: Sequence[Size],
    params: TrainParams,
    *,
    ranks: int = 1,
    compiled: bool = False,
    packed: bool = False,
) -> Work:
    """The batches of a run with these examples.

    Args:
        ranks: that share the run; the first has the longest rows.
        compiled: whether every padded batch of a length is filled up to one shape, as on a GPU.
        packed: whether examples lie one after another.
    """
    lengths, valid_lengths = tuple(one.length for one in train), [one.length for one in valid]
    sizes = Sizes(lengths, [one.answer if params.loss == "completion" else one.length for one in train])
    batching: Batching
    if packed:
        batching = Packed(sizes, params, ranks)
        checked = packed_validation(valid_lengths, params.batch_size, 0, ranks)
    else:
        buckets = choose_lengths(lengths, batch_size=params.batch_size)
        batching = Padded(sizes, buckets, params, ranks, few_shapes=compiled)
        valid_buckets = choose_lengths(valid_lengths, VALIDATION_PADDING)
        checked = validation_batches(valid_lengths, valid_buckets, params.batch_size, 0, ranks, few_shapes=compiled)
    loads, tokens, batches, sent = set(), 0, 0, 0
    most = min(_MOST_BATCHES, _MOST_EXAMPLES // params.batch_size)
    taken = min(params.iterations, most // params.gradient_accumulation + 1)
    for step in range(taken):
        for planned in batching.share(step, 0):
            loads.add(_load(planned))
            sent += planned.rows * planned.length
            tokens += (planned.rows if packed else len(planned.chosen)) * planned.length
            batches += 1
    checks = [_load(planned) for planned in checked]  # both losses: every token counts
    wanted = [lengths[index] for index in used(batching, params.iterations, len(lengths))]
    wanted += valid_lengths
    frozen_lengths = choose_lengths([*lengths, *valid_lengths], FROZEN_PADDING)
    padded = sorted(bucket_of(length, frozen_lengths) for length in wanted)
    return Work(
        train=tuple(sorted(loads)),
        valid=tuple(sorted(set(checks))),
        mean_tokens=tokens / batches,
        step_tokens=sent / taken,
        even_tokens=batching.even_tokens,
        valid_tokens=sum(load.rows * load.length for load in checks),
        state_tokens=sum(wanted),
        states=tuple((length, padded.count(length)) for length in sorted(set(padded))),
    )


def _load(planned: Planned) -> Load:
    return Load(planned.rows, planned.length, planned.counted, planned.packed)
