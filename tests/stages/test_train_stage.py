"""The train stage as a process: what it refuses, and what is left then."""

from __future__ import annotations

from pathlib import Path

import pytest
from train_project import TrainProject


@pytest.mark.parametrize(
    ("lora", "message"),
    [({"rank": 10**9}, "found settings that need"), ({"layers": 9}, "lora.layers: found 9")],
    ids=["memory", "layers"],
)
def test_a_refused_run_leaves_the_results_of_the_last_one(
    model_folder: Path, tmp_path: Path, lora: dict[str, int], message: str
) -> None:
    project = TrainProject(tmp_path / "project", model_folder)
    (project.folder / "loss.csv").write_text("iteration,train_loss\n0,1.5\n")
    (project.folder / "training.json").write_text("{}\n")
    project.write_params(lora=lora)
    process = project.start()
    _, errors = process.communicate()
    assert process.returncode == 1
    assert message in " ".join(errors.split())
    assert (project.folder / "loss.csv").read_text() == "iteration,train_loss\n0,1.5\n"
    assert (project.folder / "training.json").read_text() == "{}\n"
    assert not (project.folder / "adapter").exists()


@pytest.mark.parametrize("split", ["train", "valid"])
def test_an_empty_split_is_named(model_folder: Path, tmp_path: Path, split: str) -> None:
    project = TrainProject(tmp_path / "project", model_folder)
    project.write_params()
    (project.folder / f"{split}.jsonl").write_text("")
    process = project.start()
    _, errors = process.communicate()
    assert process.returncode == 1
    assert errors.startswith(f"error: {split}.jsonl: found no example")


def test_the_stage_says_at_its_end_that_its_adapter_is_untrained(model_folder: Path, tmp_path: Path) -> None:
    project = TrainProject(tmp_path / "project", model_folder)
    project.write_params(learning_rate=1e-30)  # no step can lower the loss
    process = project.start()
    output, errors = process.communicate()
    assert process.returncode == 0, output + errors
    assert project.summary()["published_iteration"] == 0
    assert output.splitlines()[-1].startswith("published: iteration 0 of 12, validation loss ")
    assert "warning: adapter: the adapter is untrained" in errors.splitlines()[-1]
