from __future__ import annotations

import numpy as np
import pytest

from sqlora.tokenizer import Encoded
from sqlora.train.batches import batch_indices, make_batch


@pytest.mark.parametrize(("count", "size"), [(100, 4), (103, 4), (3, 4), (1, 1), (65, 16)])
def test_every_epoch_holds_each_example_once_the_tail_included(count: int, size: int) -> None:
    lengths = [(7 * i) % 50 + 10 for i in range(count)]
    steps = -(-count // size)
    for epoch in range(3):
        batches = [batch_indices(epoch * steps + step, lengths, size, seed=1) for step in range(steps)]
        assert sorted(index for batch in batches for index in batch) == list(range(count))
        assert all(0 < len(batch) <= size for batch in batches)


def test_the_order_depends_on_seed_and_step_alone() -> None:
    lengths = [(7 * i) % 50 + 10 for i in range(50)]
    late = batch_indices(37, lengths, 4, seed=5)
    for step in range(60):
        batch_indices(step, lengths, 4, seed=5)
    assert batch_indices(37, lengths, 4, seed=5) == late

    def epoch(number: int, seed: int) -> list[list[int]]:
        return [batch_indices(13 * number + step, lengths, 4, seed) for step in range(13)]

    assert epoch(0, seed=5) != epoch(0, seed=6)
    assert epoch(0, seed=5) != epoch(1, seed=5)


def test_batches_hold_examples_of_like_length() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(60, 200, 400).tolist()
    padded = real = 0
    for step in range(100):
        chosen = [lengths[index] for index in batch_indices(step, lengths, 4, seed=1)]
        padded += max(chosen) * len(chosen)
        real += sum(chosen)
    assert (padded - real) / padded < 0.05


def test_the_loss_counts_completion_and_eos_only() -> None:
    # BOS 1, prompt, completion, EOS 2; the second row is shorter and so padded.
    batch = make_batch([Encoded((1, 10, 11, 20, 21, 2), 3), Encoded((1, 12, 22, 2), 2)])
    assert batch.inputs.tolist() == [[1, 10, 11, 20, 21], [1, 12, 22, 0, 0]]
    assert batch.targets.tolist() == [20, 21, 2, 22, 2]
    # Each counted position holds the token before its target.
    assert batch.inputs.reshape(-1)[batch.positions].tolist() == [11, 20, 21, 12, 22]
    assert batch.real_tokens == 10
