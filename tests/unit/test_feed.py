from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from train_params import train_params

from sqlora.distributed.group import Group
from sqlora.plan.work import Size, work_of
from sqlora.tokenizer import Encoded
from sqlora.train.buckets import choose_lengths
from sqlora.train.feed import Feed, steps_together
from sqlora.train.gather import Gatherer
from sqlora.train.inputs import token_fetcher
from sqlora.train.loss import Batch
from sqlora.train.validation import Data


def batch_of(step: int) -> Batch:
    """Two rows of three tokens' states; the second row's last token does not count."""
    states = np.full((2, 3, 4), step, dtype=np.float32)
    positions, targets = np.arange(5, dtype=np.int32), np.arange(5, dtype=np.int32) + step
    weights = np.ones(5, dtype=np.float32)
    spans = np.array([[0] * 6, [6] * 6], dtype=np.int32) if step % 2 else None
    return Batch(states, positions, targets, weights, weights / 2, 6, spans)


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

    step_bytes = 5_000_000 if cuda else 2_500_000
    assert steps_together(step_bytes, cuda=cuda) == 12
    feed = Feed(gather, 40, step_bytes)
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
            if expected.spans is None:
                assert ready.spans is None
            else:
                assert np.array_equal(np.array(ready.spans), expected.spans)
            assert ready.counted == 5
    assert gathered == list(range(12, 40)), "from the first of those that come together"


def test_what_is_behind_a_step_is_what_came_with_it() -> None:
    feed = Feed(lambda step: ([batch_of(step)], [step]), 20, 2_500_000)
    assert feed.behind(3) == []
    feed(3)
    assert [one.chosen for one in feed.behind(3)] == [[step] for step in range(4, 12)]
    assert [one.chosen for one in feed.behind(10)] == [[11]]
    assert feed.behind(11) == []
    feed(12)
    assert feed.behind(11) == []
    assert [one.chosen for one in feed.behind(12)] == [[step] for step in range(13, 20)]


def test_nothing_is_gathered_behind_the_last_step() -> None:
    gathered = []

    def gather(step: int) -> tuple[list[Batch], list[int]]:
        gathered.append(step)
        return [], []

    feed = Feed(gather, 40, 2_500_000)
    feed.begin(40)
    feed._background.submit(lambda: None).result()
    assert gathered == []
    feed(39)
    feed._background.submit(lambda: None).result()
    assert gathered == [36, 37, 38, 39]
    assert feed._next is None


@pytest.mark.parametrize(("step_bytes", "steps"), [(0, 16), (4_000_000, 16), (4_000_001, 15), (200_000_000, 1)])
def test_so_many_steps_come_together(step_bytes: int, steps: int) -> None:
    assert steps_together(step_bytes, cuda=True) == steps
    assert steps_together(-(-step_bytes // 2), cuda=False) == steps


def test_on_cuda_the_bytes_are_made_where_the_device_can_read_them(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    monkeypatch.setattr("sqlora.train.feed.has_cuda", lambda: True)
    monkeypatch.setattr("sqlora.train.feed.prefetch", sent.extend)
    monkeypatch.setattr("sqlora.train.feed.mx.array", lambda *_: pytest.fail("this holds Python's lock"))
    feed = Feed(lambda step: ([batch_of(step)], [step]), 2, 1)
    feed.begin(0)
    feed._background.submit(lambda: None).result()
    assert len(sent) == 1
    assert sent[0].nbytes > 2 * batch_of(0).inputs.nbytes


class Rank(Group):
    """The first of several ranks."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size


@pytest.mark.parametrize(("few_shapes", "packed"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("batch", "accumulation", "ranks"), [(4, 1, 1), (4, 3, 1), (4, 3, 2), (4, 5, 4), (2, 1, 4)])
def test_the_plan_counts_what_is_sent(
    batch: int, accumulation: int, ranks: int, few_shapes: bool, packed: bool
) -> None:
    rng = np.random.default_rng(0)
    examples = [Encoded(tuple(rng.integers(3, 90, length).tolist()), 3) for length in rng.integers(9, 40, 60)]
    lengths = [len(example.tokens) - 1 for example in examples]
    params = dataclasses.replace(train_params(batch_size=batch, iterations=20), gradient_accumulation=accumulation)
    data = Data(examples, token_fetcher(examples), None if packed else choose_lengths(lengths), 4)
    gather = Gatherer(data, params, Rank(ranks), few_shapes=few_shapes)
    sizes = [Size(length, length - 2) for length in lengths]
    work = work_of(sizes, sizes[:5], params, ranks=ranks, compiled=few_shapes, packed=packed)
    batches = [batch for step in range(20) for batch in gather(step)[0]]
    sent = [sum(math.prod(one.inputs.shape) for one in gather(step)[0]) for step in range(20)]
    assert {(*one.inputs.shape, len(one.positions)) for one in batches} == {
        (load.rows, load.length, load.counted) for load in work.train
    }
    assert work.step_tokens == np.mean(sent)
    assert gather.step_bytes == int(work.even_tokens * 4)
    assert work.even_tokens == pytest.approx(np.mean(sent), rel=0.4 if batch * accumulation < ranks else 0.25)
