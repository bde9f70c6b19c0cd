"""Batch shapes: few, with little padding, and every example once an epoch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from train_runs import batch_indices

from sqlora.train.buckets import bucket_of, choose_lengths, validation_batches


@pytest.mark.parametrize(("count", "size"), [(100, 4), (103, 4), (3, 4), (1, 1), (65, 16)])
def test_every_epoch_holds_each_example_once_the_tail_included(count: int, size: int) -> None:
    lengths = [(7 * i) % 50 + 10 for i in range(count)]
    buckets = choose_lengths(lengths)
    steps = -(-count // size)
    for epoch in range(3):
        batches = [batch_indices(epoch * steps + step, lengths, buckets, size, 1) for step in range(steps)]
        assert sorted(index for batch in batches for index in batch) == list(range(count))
        assert sorted(map(len, batches))[1:] == [size] * (steps - 1)


def test_the_order_depends_on_seed_and_step_alone() -> None:
    lengths = [(7 * i) % 50 + 10 for i in range(50)]
    buckets = choose_lengths(lengths)
    late = batch_indices(37, lengths, buckets, 4, 5)
    for step in range(60):
        batch_indices(step, lengths, buckets, 4, 5)
    assert batch_indices(37, lengths, buckets, 4, 5) == late

    def epoch(number: int, seed: int) -> list[list[int]]:
        return [batch_indices(13 * number + step, lengths, buckets, 4, seed) for step in range(13)]

    assert epoch(0, seed=5) != epoch(0, seed=6)
    assert epoch(0, seed=5) != epoch(1, seed=5)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 32])
def test_few_shapes_and_little_padding(size: int) -> None:
    # About as WikiSQL's lengths are: mean 95, 95% under 131, the longest at 221.
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.gamma(20, 4.75, 1000), 40, 221).astype(int).tolist()
    buckets = choose_lengths(lengths, batch_size=size)
    assert len(buckets) <= 14
    padded = filled = 0
    for step in range(-(-1000 // size)):
        chosen = batch_indices(step, lengths, buckets, size, 1)
        length = bucket_of(max(lengths[index] for index in chosen), buckets)
        padded, filled = padded + len(chosen) * length, filled + size * length
    assert 1 - sum(lengths) / padded < 0.05
    assert filled - padded <= size * min(buckets), "what is left over of an epoch are short examples"


@pytest.mark.parametrize(("count", "size"), [(1000, 32), (1000, 16), (20, 16), (10, 16), (64, 32)])
def test_a_large_batch_holds_examples_of_one_bucket(count: int, size: int) -> None:
    lengths = [(7 * i) % 50 + 10 for i in range(count)]
    buckets = choose_lengths(lengths, batch_size=size)
    epochs = [
        [
            batch_indices(epoch * -(-count // size) + step, lengths, buckets, size, 1)
            for step in range(-(-count // size))
        ]
        for epoch in range(2)
    ]
    for batches in epochs:
        assert sorted(index for batch in batches for index in batch) == list(range(count))
        for batch in batches:
            # One that is as long as the next shorter bucket may be what filled no batch there.
            top = bucket_of(max(lengths[index] for index in batch), buckets)
            below = max((bucket for bucket in buckets if bucket < top), default=0)
            assert all(lengths[index] >= below for index in batch)
    if len(epochs[0]) > 4:  # other batches in each epoch, not the same in another order
        sets = [[set(batch) for batch in batches] for batches in epochs]
        assert np.mean([max(len(one & other) / len(one) for other in sets[1]) for one in sets[0]]) < 0.6
    # Lengths that were chosen for something else do no harm.
    for foreign in ((20, 59), (10, 59)):
        other = [batch_indices(step, lengths, foreign, size, 1) for step in range(-(-count // size))]
        assert sorted(index for batch in other for index in batch) == list(range(count))


def test_the_choice_of_lengths_is_the_best_there_is() -> None:
    rng = np.random.default_rng(1)
    for _ in range(30):
        lengths = rng.integers(5, 30, 12).tolist()
        chosen = choose_lengths(lengths, most_padding=0.05)
        values = sorted(set(lengths))

        def padding(buckets: tuple[int, ...], lengths: list[int] = lengths) -> float:
            return 1 - sum(lengths) / sum(bucket_of(length, buckets) for length in lengths)

        assert chosen[-1] == values[-1]
        assert padding(chosen) <= 0.05 + 1e-9
        fewer = itertools.combinations(values[:-1], len(chosen) - 2) if len(chosen) > 1 else []
        assert all(padding((*one, values[-1])) > 0.05 - 1e-9 for one in fewer)
        same = itertools.combinations(values[:-1], len(chosen) - 1)
        assert padding(chosen) == pytest.approx(min(padding((*one, values[-1])) for one in same))


def test_one_length_is_one_bucket() -> None:
    assert choose_lengths([7, 7, 7]) == (7,)
    assert choose_lengths([7]) == (7,)


@pytest.mark.parametrize("size", [1, 3, 60])
@pytest.mark.parametrize("few_shapes", [False, True])
def test_validation_takes_each_example_once_in_batches_of_like_size(size: int, *, few_shapes: bool) -> None:
    lengths = [(37 * i) % 90 + 10 for i in range(50)]
    buckets = (40, 70, 99)
    seen = []
    for rank in range(size):
        batches = validation_batches(lengths, buckets, 4, rank, size, few_shapes=few_shapes)
        seen += [index for batch in batches for index in batch.chosen]
        for length in buckets:
            alike = [batch for batch in batches if batch.length == length]
            shapes = {(batch.rows, batch.counted) for batch in alike}
            assert len(shapes) <= 1 or not few_shapes
            for batch in alike:
                counted = sum(lengths[index] for index in batch.chosen)
                assert max(lengths[index] for index in batch.chosen) <= length
                assert batch.rows * length <= max(1024, 4 * length)
                filled = batch.rows - len(batch.chosen), batch.counted - counted
                assert min(filled) >= 0
                assert filled == (0, 0) or few_shapes
                assert batch.rows - len(batch.chosen) < len(alike), "the rows are shared out, not left over"
    assert sorted(seen) == list(range(50))
