"""Several ranks on this machine, over loopback, train to what one process trains to."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from train_project import TrainProject

from sqlora.train.upper import rows_of

# One report at the end, so that the last but one checkpoint holds the losses of all steps before it, not rounded.
SETTINGS: dict[str, Any] = {"learning_rate": 1e-3, "report_every": 100, "validate_every": 6, "checkpoint_every": 1}


def losses_of_steps(project: TrainProject) -> list[float]:
    """Since the last report of the checkpoint before the last, and the best validation loss."""
    (record,) = project.folder.glob(".sqlora/train/*/step-00000011/record.json")
    content = json.loads(record.read_text())
    assert len(content["since"]) == 5
    return [loss for loss, _ in content["since"]] + [content["best_loss"]]


@pytest.fixture(scope="module")
def alone(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainProject:
    project = TrainProject(tmp_path_factory.mktemp("alone") / "project", model_folder, examples=22)
    project.run(**SETTINGS, gradient_accumulation=2, batch_size=3)
    return project


def assert_equal(one: TrainProject, other: TrainProject) -> None:
    assert np.abs(one.adapter() - other.adapter()).max() < 1e-5
    assert losses_of_steps(one) == pytest.approx(losses_of_steps(other), abs=1e-5)
    assert one.losses().keys() == other.losses().keys() == {0, 6, 12}
    for iteration, row in one.losses().items():  # rounded to four places
        assert row == pytest.approx(other.losses()[iteration], abs=1.01e-4)


def parts(project: TrainProject) -> dict[int, dict[str, int]]:
    """Part -> the examples whose states it holds -> their tokens."""
    return {
        int(path.stem.removeprefix("index-")): {
            key: count for key, _, count, _ in map(json.loads, path.read_text().splitlines())
        }
        for path in project.folder.glob(".sqlora/states/*/index-*.jsonl")
    }


def test_two_workers_give_what_one_gives_and_each_computes_whole_batches_of_the_states(
    alone: TrainProject, model_folder: Path, tmp_path: Path
) -> None:
    project = TrainProject(tmp_path / "project", model_folder, examples=22)
    project.run(**SETTINGS, gradient_accumulation=2, batch_size=3, workers=2)
    assert_equal(project, alone)
    by_part = parts(project)
    assert sorted(by_part) == [0, 1]
    # There are two lengths that are padded to, and so two batches, which take as long: one each.
    longest = [max(held.values()) for held in by_part.values()]
    rows = [rows_of(length) for length in longest]
    assert all(len(held) <= most for held, most in zip(by_part.values(), rows, strict=True))
    work = [most * length for most, length in zip(rows, longest, strict=True)]
    assert 0.48 < work[0] / sum(work) < 0.52
    assert max(by_part[0].values()) < min(by_part[1].values()), "neighbours in length, and no batch in both"
    assert not by_part[0].keys() & by_part[1].keys()
    (everything,) = parts(alone).values()
    assert by_part[0] | by_part[1] == everything
    assert project.summary()["states_computed"] == len(everything) == 27
    assert list(project.folder.glob(".sqlora/ranks/*")) == []
    # A bit of one rank's states flips: whoever looks at them, one rank computes them anew, and all read these.
    adapter = project.adapter()
    (states,) = project.folder.glob(".sqlora/states/*/states-1.bin")
    content = bytearray(states.read_bytes())
    content[len(content) // 2] ^= 4
    states.write_bytes(content)
    for run in project.folder.glob(".sqlora/train/*"):
        shutil.rmtree(run)
    project.run(**SETTINGS, gradient_accumulation=2, batch_size=3, workers=2)
    assert [project.summary()[name] for name in ("states_computed", "states_reused")] == [1, 26]
    assert np.array_equal(project.adapter(), adapter)


def test_a_hostfile_and_ranks_without_rows_change_nothing(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "hosts.json").write_text(json.dumps([{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}] * 3))
    one, three = (TrainProject(tmp_path / name, model_folder) for name in ("one", "three"))
    settings = SETTINGS | {"batch_size": 2}
    one.run(**settings)
    three.run(**settings, hostfile="../hosts.json")
    assert_equal(three, one)
    # With no states stored, all layers are computed in every step.
    without = TrainProject(tmp_path / "without", model_folder)
    without.run(**settings, workers=2, states_gb=0)
    assert_equal(without, one)


def test_what_every_rank_finds_wrong_is_said_once(model_folder: Path, tmp_path: Path) -> None:
    project = TrainProject(tmp_path / "project", model_folder)
    project.write_params(lora={"layers": 9}, workers=2)
    process = project.start()
    _, errors = process.communicate()
    assert process.returncode == 1
    assert len(re.findall("error:", errors)) == 1
    assert "lora.layers: found 9" in errors
    assert "Traceback" not in errors
