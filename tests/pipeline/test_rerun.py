"""Which stages run again after which change: dvc really runs, on a tiny random base model."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from project import Project

EVERY_STAGE = {
    "fetch_model",
    "convert",
    "fetch_data",
    "split",
    "train",
    "generate_base",
    "generate_adapter",
    "score",
    "report",
}
AFTER_TRAINING = {"train", "generate_adapter", "score", "report"}


@pytest.fixture
def project(original: Project, tmp_path: Path) -> Project:
    """A copy, so that no test sees another's changes."""
    shutil.copytree(original.folder, tmp_path / "copy", symlinks=True)
    return Project(tmp_path / "copy")


def test_at_first_every_stage_runs(finished: tuple[Project, set[str]]) -> None:
    assert finished[1] == EVERY_STAGE


def test_nothing_runs_when_nothing_changed(project: Project) -> None:
    assert project.repro() == set()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"train__iterations": 3}, AFTER_TRAINING),
        ({"train__batch_size": 3}, AFTER_TRAINING),
        ({"lora__layers": 3}, AFTER_TRAINING),
        ({"split__train_size": 13}, {"split", *AFTER_TRAINING}),
        ({"generate__max_tokens": 5}, {"generate_base", "generate_adapter", "score", "report"}),
        ({"score__execute": "text"}, {"score", "report"}),
        ({"split__drop_degenerate": True}, {"split", "report"}),  # the demo has no such question; the page shows all
        ({"convert__dtype": "bfloat16"}, {"convert", "generate_base", *AFTER_TRAINING}),
        ({"convert__quantize": 4}, {"convert", "generate_base", *AFTER_TRAINING}),
        ({"model__source": "other.tar"}, {"fetch_model", "convert", "generate_base", *AFTER_TRAINING}),
    ],
    ids=lambda value: next(iter(value)).replace("__", ".") if isinstance(value, dict) else "",
)
def test_a_parameter_reruns_the_stages_that_it_concerns_and_no_other(
    project: Project, change: dict[str, Any], expected: set[str]
) -> None:
    project.set(**change)
    assert project.repro() == expected
    assert project.repro() == set()


def test_going_back_to_old_parameters_restores_instead_of_training_again(project: Project) -> None:
    before = (project.folder / "results" / "score.json").read_bytes()
    project.set(train__iterations=3)
    assert project.repro() == AFTER_TRAINING
    project.set(train__iterations=2)
    # The page alone is drawn anew: DVC caches no run that has an uncached output, and git is what keeps the page.
    assert project.repro() == {"report"}
    assert (project.folder / "results" / "score.json").read_bytes() == before


def test_a_mistake_in_a_late_section_stops_the_first_stage(project: Project) -> None:
    project.set(generate__max_tokens=0, model__source="other.tar")
    done = project.run("dvc", "repro")
    assert done.returncode != 0
    assert "generate.max_tokens: is 0; allowed is a whole number at least 1" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout


def test_metrics_have_the_names_that_others_rely_on(original: Project) -> None:
    results = original.folder / "results"
    score = json.loads((results / "score.json").read_text())
    assert score["examples"] == 5
    for side in ("base", "adapter"):
        for name in ("execution_accuracy", "logical_form_accuracy", "valid_sql", "stopped_at_eos"):
            assert 0 <= score[side][name] <= 1
    training = json.loads((results / "training.json").read_text())
    for name in (
        "iterations",
        "final_train_loss",
        "final_valid_loss",
        "tokens_per_second",
        "peak_memory_gb",
        "trainable_parameters",
        "total_parameters",
    ):
        assert training[name] > 0, name
    assert dict(training["environment"])["mlx"]
    shown = original.run("dvc", "metrics", "show", "--json")
    assert shown.returncode == 0, shown.stderr
    assert "execution_accuracy" in shown.stdout
    assert "final_valid_loss" in shown.stdout
    assert "environment" not in shown.stdout  # texts that would fill the tables


def test_the_adapter_and_the_model_are_what_mlx_lm_loads(original: Project) -> None:
    from mlx_lm import generate, load

    model, tokenizer = load(
        str(original.folder / "artifacts" / "model"), adapter_path=str(original.folder / "artifacts" / "adapter")
    )
    assert isinstance(generate(model, tokenizer, "Q: no\nA:", max_tokens=3), str)


def test_a_repro_with_nothing_to_do_reads_no_artifact_again(project: Project) -> None:
    """14.5 GB would take half a minute: DVC knows a file by its size, time and inode."""
    assert project.repro() == set()  # it notes those of the copy
    for name in ("source-model/consolidated.00.pth", "model/model-00001-of-00001.safetensors"):
        path = project.folder / "artifacts" / name
        status, content = path.stat(), bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        with open(path, "r+b") as file:
            file.write(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    # Nobody has read the changed bytes.
    assert project.repro() == set()
    path.touch()
    printed = project.run("dvc", "status", "dvc.yaml").stdout
    assert re.search(r"modified: +artifacts/model", printed)
    assert not re.search(r"modified: +artifacts/source-model", printed)
