"""Batches of examples one after another: about equal numbers of tokens, few shapes, and every example once an epoch."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from train_params import train_params
from train_runs import examples

from sqlora.train.batching import Packed, Sizes
from sqlora.train.buckets import Planned
from sqlora.train.inputs import token_fetcher
from sqlora.train.loss import make_batch
from sqlora.train.packing import even_batches, level, packed_validation, tokens_of


def wikisql(count: int = 1000) -> list[int]:
    """About as WikiSQL's lengths are: mean 95, 95% under 131, the longest at 221."""
    return np.clip(np.random.default_rng(0).gamma(20, 4.75, count), 40, 221).astype(int).tolist()


@pytest.mark.parametrize(("count", "size"), [(100, 4), (103, 4), (3, 4), (1, 1), (65, 16), (64, 16), (7, 1)])
def test_every_epoch_holds_each_example_once_the_tail_included(count: int, size: int) -> None:
    lengths = [(7 * i) % 50 + 10 for i in range(count)]
    for epoch in range(3):
        batches = even_batches(lengths, size, 1, epoch)
        assert len(batches) == -(-count // size)
        assert sorted(index for batch in batches for index in batch) == list(range(count))
        assert sorted(map(len, batches))[1:] == [size] * (len(batches) - 1)


def test_an_epochs_batches_depend_on_seed_and_epoch_alone() -> None:
    lengths = wikisql(100)
    assert even_batches(lengths, 4, 5, 1) == even_batches(lengths, 4, 5, 1)
    others = [even_batches(lengths, 4, seed, epoch) for seed, epoch in ((5, 0), (5, 1), (6, 0))]
    for one, other in itertools.combinations(others, 2):
        together, apart = ({frozenset(batch) for batch in batches} for batches in (one, other))
        assert len(together & apart) < 3


@pytest.mark.parametrize(
    ("count", "size", "apart"),
    [(1000, 4, 12), (1000, 8, 8), (1000, 16, 8), (1000, 32, 8), (8000, 4, 16), (20_000, 16, 8)],
)
def test_batches_have_about_as_many_tokens(count: int, size: int, apart: int) -> None:
    lengths = wikisql(count)
    batches = [batch for batch in even_batches(lengths, size, 1, 0) if len(batch) == size]
    sums = [sum(lengths[row] for row in batch) for batch in batches]
    drawn = np.random.default_rng(1).permutation(lengths)[: count // size * size].reshape(-1, size).sum(axis=1)
    assert np.std(sums) < np.std(drawn) / 2
    assert max(sums) - min(sums) <= apart
    # Long and short ones in each: exchanged are examples of about one length.
    spreads = [np.ptp([lengths[row] for row in batch]) for batch in batches]
    assert size < 8 or min(spreads) > np.ptp(np.quantile(lengths, [0.2, 0.8]))


def test_what_one_exchange_at_a_time_cannot_even_out_stays() -> None:
    lengths = [10] * 7 + [1000]
    batches = even_batches(lengths, 4, 1, 0)
    assert sorted(sum(lengths[row] for row in batch) for batch in batches) == [40, 1030]
    assert sorted(row for batch in batches for row in batch) == list(range(8))


@pytest.mark.parametrize(
    ("lengths", "count", "expected"),
    [
        ([9, 1, 5, 5, 4, 3, 3], 3, [10, 10, 10]),
        ([7, 6, 5, 5, 4], 2, [13, 14]),  # the longest first alone gives 12 and 15
        ([30, 1, 1], 2, [2, 30]),
        ([5], 2, [0, 5]),
        ([], 2, [0, 0]),
        ([50, 49, 48, 2, 1, 1, 1, 1, 1], 4, [7, 48, 49, 50]),
    ],
)
def test_shares_are_level(lengths: list[int], count: int, expected: list[int]) -> None:
    shares = level(range(len(lengths)), lengths, count)
    assert sorted(sum(lengths[row] for row in share) for share in shares) == expected
    assert sorted(row for share in shares for row in share) == list(range(len(lengths)))


@pytest.mark.parametrize(
    ("batch", "ranks", "most"), [(16, 2, 1.0015), (32, 2, 1.001), (16, 4, 1.005), (32, 4, 1.0025), (32, 8, 1.009)]
)
def test_the_ranks_of_a_step_have_about_as_many_tokens(batch: int, ranks: int, most: float) -> None:
    lengths = wikisql()
    packed = Packed(Sizes(lengths, lengths), train_params(batch_size=batch, iterations=200), ranks)
    fullest = even = 0.0
    for step in range(200):
        shares = [[row for one in packed.rows(step, rank) for row in one] for rank in range(ranks)]
        fullest += max(sum(lengths[row] for row in share) for share in shares)
        even += sum(lengths[row] for row in packed.examples(step)) / ranks
    assert fullest / even < most


def test_a_batch_is_filled_up_by_less_than_a_hundredth() -> None:
    found = [tokens_of([0, 1], [tokens - 1, 1]) for tokens in range(1, 5000)]
    assert all(0 <= filled - tokens <= tokens / 100 for tokens, filled in enumerate(found, 1))
    assert [found[tokens - 1] for tokens in (1, 99, 201, 399, 801, 3001)] == [1, 99, 202, 400, 808, 3008]


@pytest.mark.parametrize("ranks", [1, 2, 4, 7])
@pytest.mark.parametrize(("size", "accumulation"), [(1, 1), (4, 1), (16, 1), (32, 1), (4, 3), (3, 4)])
def test_few_shapes_little_filling_and_every_row_on_one_rank(size: int, accumulation: int, ranks: int) -> None:
    lengths = wikisql()
    counts = [length // 3 for length in lengths]
    params = dataclasses.replace(train_params(batch_size=size, iterations=300), gradient_accumulation=accumulation)
    packed = Packed(Sizes(lengths, counts), params, ranks)
    alone = Packed(Sizes(lengths, counts), params, 1)
    shapes: dict[int, set[int]] = {}
    real = filled = 0
    for step in range(300):
        shares = [packed.share(step, rank) for rank in range(ranks)]
        rows = [row for share in shares for planned in share for row in planned.chosen]
        assert sorted(rows) == sorted(packed.examples(step)) == sorted(alone.examples(step))
        for planned in itertools.chain(*shares):
            assert (planned.rows, planned.packed) == (1, True)
            tokens, counted = (sum(values[row] for row in planned.chosen) for values in (lengths, counts))
            assert tokens <= planned.length
            assert counted <= planned.counted
            shapes.setdefault(planned.length, set()).add(planned.counted)
            real, filled = real + tokens, filled + planned.length
        if len(rows) >= ranks and len(rows) == size * accumulation:
            sums = [sum(planned.length for planned in share) for share in shares]
            longest = max(lengths[row] for row in rows)
            assert max(sums) == sums[0] <= min(sums) + longest * 1.1
            most = -(-len(rows) // ranks)
            assert max(len(share) for share in shares) <= -(-most // size), "as few batches as rows allow"
    assert len(shapes) <= 12
    assert all(len(counted) == 1 for counted in shapes.values()), "one graph a length"
    each = size * accumulation / ranks * 95 / max(1, -(-size * accumulation // ranks // size))
    assert 1 - real / filled < (0.03 if each >= 300 else 0.045)


def test_a_run_that_goes_on_behind_what_was_looked_at_takes_what_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqlora.train.batching._BATCHES_LOOKED_AT", 1)
    lengths, counts = [*[50] * 40, 300], [*[10] * 20, *[20] * 20, 30]
    packed = Packed(Sizes(lengths, counts), train_params(batch_size=4, iterations=50, seed=5), 1)
    ((known, most),) = packed._shapes
    more_tokens = more_counted = 0
    for step in range(50):
        (planned,) = packed.share(step, 0)
        tokens, counted = (sum(values[row] for row in planned.chosen) for values in (lengths, counts))
        assert tokens <= planned.length == max(known, tokens_of(planned.chosen, lengths))
        assert counted <= planned.counted
        more_tokens += tokens > known
        more_counted += tokens <= known and counted > most
    assert more_tokens
    assert more_counted


@pytest.mark.parametrize("kind", ["completion", "all"])
def test_examples_lie_one_after_another(kind: str) -> None:
    rows = examples(4)
    sizes = [len(row.tokens) - 1 for row in rows]
    assert sizes == [9, 10, 11, 12]
    batch = make_batch(rows, Planned([2, 0, 3], 35, 1, 40, packed=True), token_fetcher(rows), kind)
    assert batch.inputs.shape == (1, 35)
    expected = [*rows[2].tokens[:-1], *rows[0].tokens[:-1], *rows[3].tokens[:-1], 0, 0, 0]
    assert batch.inputs[0].tolist() == expected
    assert batch.spans is not None
    assert batch.spans.tolist() == [
        [0] * 11 + [11] * 9 + [20] * 12 + [32, 33, 34],
        [11] * 11 + [20] * 9 + [32] * 12 + [33, 34, 35],
    ]
    starts = {2: 0, 0: 11, 3: 20}
    places = [
        (starts[index] + place, rows[index].tokens[place + 1], float(place >= rows[index].prompt_tokens - 1))
        for index in (2, 0, 3)
        for place in range(rows[index].prompt_tokens - 1 if kind == "completion" else 0, sizes[index])
    ]
    assert batch.counted == len(places)
    found = zip(batch.positions.tolist(), batch.targets.tolist(), batch.answers.tolist(), strict=True)
    assert list(found) == [*places, *[(0, 0, 0.0)] * (40 - len(places))]
    assert batch.real_tokens == 9 + 11 + 12 + 3


@pytest.mark.parametrize("ranks", [1, 3, 60])
def test_validation_takes_each_example_once_in_one_shape(ranks: int) -> None:
    lengths = [(37 * i) % 90 + 10 for i in range(50)]
    seen = []
    for rank in range(ranks):
        batches = packed_validation(lengths, 4, rank, ranks)
        seen += [index for batch in batches for index in batch.chosen]
        assert len({(batch.rows, batch.length, batch.counted, batch.packed) for batch in batches}) <= 1
        for batch in batches:
            tokens = sum(lengths[index] for index in batch.chosen)
            assert tokens <= batch.counted <= batch.length <= 1.1 * max(1024, 4 * 55)
        if ranks == 1:
            assert [len(batches), sum(batch.length for batch in batches)] == [3, pytest.approx(sum(lengths), rel=0.02)]
    assert sorted(seen) == list(range(50))


def test_a_large_batch_is_validated_in_large_ones() -> None:
    lengths = [50] * 90
    assert [len(batch.chosen) for batch in packed_validation(lengths, 30)] == [30, 30, 30]
