"""A small program that runs as three ranks; tests/unit/test_distributed.py starts it with what it is to do."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from sqlora.mlx import mx, tree_flatten

import numpy as np
from ruamel.yaml import YAML

from sqlora.distributed.group import Group
from sqlora.distributed.launch import launched
from sqlora.distributed.rank import joined
from sqlora.errors import SqloraError
from sqlora.params.lora import LoraParams
from sqlora.params.train import TrainParams
from sqlora.stage import run
from sqlora.tokenizer import Encoded

BITS = np.array([0, 1 << 31, 0x7FC00001, 0x3F800000, 1], dtype=np.uint32)  # 0, -0, a NaN with a payload, 1, the least


def main(task: str) -> None:
    """Start three ranks, or be one of them."""
    if launched(3, None, "ring"):
        print("all through")
        return
    with joined() as group:
        print(f"rank {group.rank} speaks")
        globals()[task](group)


def messages(group: Group) -> None:
    """What the ranks tell each other."""
    assert group.size == 3
    assert group.disk == [0, 1, 2]
    assert group.totals([group.rank, 1.5]) == [3.0, 4.5]
    assert group.each(group.rank * 2) == [0.0, 2.0, 4.0]
    assert group.first({"a": [1, None, group.rank]}) == {"a": [1, None, 0]}
    assert group.first(None) is None
    assert group.gather("x" * group.rank) == ["", "x", "xx"]
    mine = {"x": mx.array(BITS).view(mx.float32), "step": mx.array(7, dtype=mx.uint64), "none": mx.zeros((0, 3))}
    got = group.first_arrays(mine if group.rank == 0 else {})
    assert np.array_equal(np.array(got["x"].view(mx.uint32)), BITS)
    assert (got["step"].item(), got["step"].dtype, got["step"].shape) == (7, mx.uint64, ())
    assert got["none"].shape == (0, 3)
    for numbers in ([1.5, -0.0], [1.5, -0.0, 2.0]):  # bytes that are whole words, and not
        half = mx.array(numbers, dtype=mx.bfloat16) * (1 + group.rank)
        got = [group.from_rank(rank, half) for rank in range(3)]
        assert [one.dtype for one in got] == [mx.bfloat16] * 3
        assert [one[0].item() for one in got] == [1.5, 3.0, 4.5]
        assert [one.view(mx.uint16)[1].item() for one in got] == [1 << 15] * 3
    group.require_same({"same": [1, 2], "too": "x"})


def flags(group: Group) -> None:
    """One rank is asked to end; all learn it in the same step."""
    stops = []
    for step in range(6):
        group._asked = lambda step=step: group.rank == 2 and step >= 2
        loss, gradient = group.add_up(mx.array(float(group.rank)), mx.full(4, 2.0))
        assert loss.item() == 3.0
        assert gradient.tolist() == [6.0] * 4
        stops.append(group.stop())
    assert stops == [False, False, False, True, True, True]


def different(group: Group) -> None:
    """Ranks that would train on different things."""
    group.require_same({"model": "one", "train": [group.rank == 1], "mlx": "x"})


def one_fails(group: Group) -> None:
    """Only the last rank finds something wrong; the others wait for it."""
    if group.rank == 2:
        raise SqloraError("there", found="nothing", expected="something", next_step="Look.")
    group.barrier()


def one_exits(group: Group) -> None:
    """A rank ends with a status of its own, without a word."""
    if group.rank == 1:
        os._exit(7)
    group.barrier()


def one_is_gone(group: Group) -> None:
    """A rank dies between two messages; what the others get is an error, and no sum without its part."""
    group.barrier()
    if group.rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1)
    if group.rank == 0:
        Path("wrong").write_text(str(group.totals([1.0])))
    else:
        Path("wrong").write_text(str(group.gather([1])))


def apart(group: Group) -> None:
    """Train with a disk for each rank, as on several machines; then again from a checkpoint that only one has."""
    group.disk = [group.rank]
    folder = Path(f"disk-{group.rank}")
    folder.mkdir()
    os.chdir(folder)
    first = train(group)
    for newest in Path(".sqlora/train").glob("*/step-00000006"):
        shutil.rmtree(newest)
    second = train(group)
    assert first.reports[-1].train_loss == second.reports[-1].train_loss
    for name, value in first.adapter.items():
        assert np.array_equal(np.array(value), np.array(second.adapter[name]))
    mx.save_safetensors("adapter.safetensors", first.adapter)


def reading(group: Group) -> None:
    """The ranks read the upper layers together; each reads a share, and all have what a process alone reads."""
    import sqlora.train.upper
    from sqlora.model import load_lazily
    from sqlora.train.upper import Upper

    plain, together = (Upper(load_lazily(Path("model"))[0], 1) for _ in range(2))
    plain.load()
    read: list[Any] = []
    read_one = sqlora.train.upper._read
    sqlora.train.upper._read = lambda part, following: (read.append(part), read_one(part, following))[1]
    together.load(group)
    parts = [*together.layers, together.model.model.norm, together.model.lm_head]
    assert [any(one is part for one in read) for part in parts] == [
        number % 3 == group.rank for number in range(len(parts))
    ]
    for part, other in zip(parts, [*plain.layers, plain.model.model.norm, plain.model.lm_head], strict=True):
        found, expected = dict(tree_flatten(part.parameters())), dict(tree_flatten(other.parameters()))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].dtype == value.dtype
            assert np.array_equal(np.array(found[name]), np.array(value)), name


def sharing(group: Group) -> None:
    """Train as on GPUs of one host, which read the weights together; then with a rank that sees less of the disk."""
    import sqlora.train.run
    import sqlora.train.upper

    exchanged: list[int] = []
    exchange = sqlora.train.upper._exchange
    sqlora.train.upper._exchange = lambda part, reader, group: (exchanged.append(reader), exchange(part, reader, group))
    sqlora.train.run.has_cuda = lambda: True
    Path("folder").mkdir(exist_ok=True)
    group.barrier()
    os.chdir("folder")
    first = train(group)
    assert exchanged == [0, 1, 2], "a layer, the norm and the output matrix"
    if group.rank == 2:
        group.disk = [1, 2]
    second = train(group)
    assert exchanged == [0, 1, 2], "each by itself"
    for name, value in first.adapter.items():
        assert np.array_equal(np.array(value), np.array(second.adapter[name]))


def train(group: Group) -> Any:
    """Six short steps; the model is in a folder beside the current one."""
    from sqlora.train.run import train_adapter  # it takes two seconds

    rng = np.random.default_rng(1)
    rows = [Encoded((1, *rng.integers(3, 500, 8 + index % 9).tolist(), 40, 41, 2), 6) for index in range(30)]
    lora = LoraParams("lora", 1, 4, 10.0, 0.0, ("q_proj", "v_proj"))
    values = YAML(typ="safe").load((Path(__file__).parents[1] / "params.yaml").read_text())["train"]
    values |= {"batch_size": 4, "iterations": 6, "report_every": 2, "validate_every": 6, "checkpoint_every": 3}
    values |= {"workers": group.size, "learning_rate": 1e-3}
    return train_adapter(
        Path("../model"), rows[:25], rows[25:], lora, TrainParams(**values), report=lambda _: None, group=group
    )


def stuck(group: Group) -> None:
    """A rank dies, and another one cannot be ended by a signal that asks."""
    if group.rank == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        Path("stuck").write_text(str(os.getpid()))
        time.sleep(600)
    while not Path("stuck").exists():
        time.sleep(0.01)
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    group.barrier()


if __name__ == "__main__":
    if "--impatient" in sys.argv:
        import sqlora.distributed.launch

        sqlora.distributed.launch._GRACE_SECONDS = 1.0
    run(lambda: main(sys.argv[1]))
