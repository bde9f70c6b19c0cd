"""Intervals and tests against figures that were worked out elsewhere."""

from __future__ import annotations

import random
from math import comb

import pytest

from sqlora.score.statistics import Paired, pair, wilson


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        (50, 100, 0.4038, 0.5962),  # the textbook's example
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), table I
        (1, 29, 0.0061, 0.1718),  # the same
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson(count: int, total: int, low: float, high: float) -> None:
    assert wilson(count, total) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("share", [0.02, 0.4, 0.9])
def test_wilson_covers_what_it_promises(share: float) -> None:
    rng = random.Random(3)
    inside = 0
    for _ in range(1000):
        count = sum(rng.random() < share for _ in range(200))
        low, high = wilson(count, 200)
        inside += low <= share <= high
    assert 920 <= inside <= 980


@pytest.mark.parametrize(
    ("fixed", "broken", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (10, 2, 2 * (1 + 12 + 66) / 4096), (2, 10, 2 * (1 + 12 + 66) / 4096), (6, 0, 2 / 64)],
)
def test_mcnemar(fixed: int, broken: int, p: float) -> None:
    assert Paired(7, fixed, broken, 9).p_value() == pytest.approx(p)


def test_mcnemar_of_many_changes() -> None:
    tail = sum(comb(3_000, count) for count in range(1_451)) / 2**3_000
    assert Paired(0, 1_550, 1_450, 0).p_value() == pytest.approx(2 * tail)
    assert Paired(0, 15_000, 0, 0).p_value() == 0


def test_pairs() -> None:
    paired = pair([True, True, False, False, False], [True, False, True, True, False])
    assert paired == Paired(both_right=1, fixed=2, broken=1, both_wrong=1)
    assert paired.difference == pytest.approx(0.2)
    with pytest.raises(ValueError, match="shorter"):
        pair([True], [])


def test_the_interval_of_a_difference_covers_what_it_promises() -> None:
    rng = random.Random(4)
    inside = 0
    for _ in range(1000):
        changes = rng.choices(["right", "fixed", "broken", "wrong"], [50, 15, 5, 30], k=200)
        counts = [changes.count(name) for name in ("right", "fixed", "broken", "wrong")]
        low, high = Paired(*counts).interval()
        inside += low <= 0.1 <= high
    assert 920 <= inside <= 985


def test_the_interval_of_a_difference_stays_within_bounds() -> None:
    assert Paired(0, 3, 0, 0).interval()[1] == 1
    assert Paired(0, 0, 3, 0).interval()[0] == -1
    low, high = Paired(0, 0, 0, 1).interval()
    assert -1 <= low < 0 < high <= 1
