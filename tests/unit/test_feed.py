from __future__ import annotations

import numpy as np
import pytest

from sqlora.train.feed import Feed, steps_together
from sqlora.train.loss import Batch


def batch_of(step: int) -> Batch:
    """Two rows of three tokens' states; the second row's last token does not count."""
    states = np.full((2, 3, 4), step, dtype=np.float32)
    positions, targets = np.arange(5, dtype=np.int32), np.arange(5, dtype=np.int32) + step
    weights = np.ones(5, dtype=np.float32)
    return Batch(states, positions, targets, weights, weights / 2, 6)


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("begun", [False, True])
def test_each_step_is_gathered_once_and_arrives_as_it_was(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, begun: bool
) -> None:
    monkeypatch.setattr("sqlora.train.feed.has_cuda", lambda: cuda)
    gathered = []

    def gather(step: int) -> tuple[list[Batch], list[int]]:
        gathered.append(step)
        return [batch_of(step)] * (step % 3), [step, step + 1]

    feed = Feed(gather, 40, 10_000_000)
    assert steps_together(10_000_000) == 12
    if begun:
        feed.begin(14)
        feed._background.submit(lambda: None).result()
        assert gathered == list(range(12, 24)), "before anyone asks"
    for step in range(14, 40):
        data = feed(step)
        assert data.chosen == [step, step + 1]
        assert len(data.batches) == step % 3
        for ready in data.batches:
            expected = batch_of(step)
            for name in ("inputs", "positions", "targets", "weights", "answers"):
                assert np.array_equal(np.array(getattr(ready, name)), getattr(expected, name)), name
            assert np.array(ready.places).tolist() == [0, 1, 2, 3, 4, 5]
            assert ready.counted == 5
    assert gathered == list(range(12, 40)), "from the first of those that come together"


def test_nothing_is_gathered_behind_the_last_step() -> None:
    def gather(step: int) -> tuple[list[Batch], list[int]]:
        raise AssertionError(step)

    Feed(gather, 40, 10_000_000).begin(40)


@pytest.mark.parametrize(("step_bytes", "steps"), [(1, 16), (8_000_000, 16), (8_000_001, 15), (200_000_000, 1)])
def test_so_many_steps_come_together(step_bytes: int, steps: int) -> None:
    assert steps_together(step_bytes) == steps
