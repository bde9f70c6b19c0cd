"""Ranks, their launcher and the stage above them are killed: the run ends, nothing is left, and it can go on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from train_project import COMMAND, TrainProject

# Long enough to be hit.
SETTINGS: dict[str, Any] = {"iterations": 160, "checkpoint_every": 5, "validate_every": 40, "report_every": 10}
SETTINGS |= {"learning_rate": 3e-4}  # where rounding is not carried far


@pytest.fixture(scope="module")
def whole(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainProject:
    """A run that nobody disturbs."""
    project = TrainProject(tmp_path_factory.mktemp("whole") / "project", model_folder)
    project.run(**SETTINGS, workers=2)
    return project


class Running:
    """The processes of a run with two workers that has taken some steps."""

    def __init__(self, project: TrainProject, **train: Any) -> None:
        project.write_params(**SETTINGS | train, workers=2)
        self.project = project
        self.stage = project.start()
        wait_for_steps(project, self.stage)
        self.all = psutil.Process(self.stage.pid).children(recursive=True)
        self.ranks = {}
        for process in self.all:
            if "stages/train.py" in process.cmdline()[1] and "MLX_RANK" in process.environ():
                self.ranks[int(process.environ()["MLX_RANK"])] = process
        (self.launcher,) = [process for process in self.all if process.cmdline()[1].endswith("launcher.py")]

    def end(self) -> tuple[int, str]:
        """Wait for the stage, then for everything below it; returns its status and what it said."""
        output, errors = self.stage.communicate()
        _, alive = psutil.wait_procs(self.all, timeout=30)
        assert alive == []
        assert "Traceback" not in errors
        return self.stage.returncode, output + errors


@pytest.fixture
def running(model_folder: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Running]:
    running = Running(TrainProject(tmp_path / "project", model_folder), **getattr(request, "param", {}))
    yield running
    for process in running.all:
        if process.is_running():
            process.kill()


def wait_for_steps(project: TrainProject, process: subprocess.Popen[Any]) -> None:
    """Until the first report, of iteration 10."""
    while not (project.folder / "loss.csv").exists() or 10 not in project.losses():
        assert process.poll() is None
        time.sleep(0.02)


def go_on(project: TrainProject) -> None:
    """The same run again; it starts from a checkpoint."""
    process = project.start()
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "going on from step-" in output


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_named_and_the_run_goes_on_to_the_same_adapter(
    running: Running, whole: TrainProject, rank: int
) -> None:
    while not running.project.newest():  # it is written while steps go on, and a slow disk takes longer than these
        assert running.stage.poll() is None
        time.sleep(0.02)
    running.ranks[rank].kill()
    status, said = running.end()
    assert status == 1
    words = " ".join(said.split())
    assert f"rank {rank} of 2 on 127.0.0.1: found its end by SIGKILL" in words
    assert "Run dvc repro again" in words
    assert not (running.project.folder / "adapter").exists()
    go_on(running.project)
    assert np.array_equal(running.project.adapter(), whole.adapter())
    assert running.project.losses() == whole.losses()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_another_number_of_workers_goes_on(
    whole: TrainProject, model_folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    more = {"checkpoint_every": 10_000, "iterations": 4_000}  # it takes half a second until the ranks hear of it
    running = Running(TrainProject(tmp_path / "project", model_folder), **more)
    running.stage.send_signal(number)
    status, said = running.end()
    assert status == 130
    assert "interrupted" in said
    project = running.project
    assert 10 <= project.newest() < 4_000
    if number == signal.SIGTERM:
        return
    project.write_params(**SETTINGS | more)  # one worker
    go_on(project)
    before, after = whole.losses(), project.losses()
    assert len(before) < len(after)
    for iteration, row in before.items():
        assert row[:3] == pytest.approx(after[iteration][:3], abs=1e-3)


endless = pytest.mark.parametrize("running", [{"iterations": 50_000}], indirect=True, ids=["endless"])


@endless
def test_a_killed_launcher_takes_the_ranks_along(running: Running) -> None:
    running.launcher.kill()
    status, said = running.end()
    assert status == 1
    assert "mlx.launch: found its end by SIGKILL" in " ".join(said.split())


@endless
def test_a_killed_stage_takes_launcher_and_ranks_along(running: Running) -> None:
    running.stage.kill()
    running.stage.wait()
    _, alive = psutil.wait_procs(running.all, timeout=30)
    assert alive == []


def test_the_ranks_save_and_end_when_the_dvc_above_them_is_killed(model_folder: Path, tmp_path: Path) -> None:
    project = TrainProject(tmp_path / "project", model_folder)
    project.write_params(**SETTINGS | {"iterations": 5000, "checkpoint_every": 10_000}, workers=2)
    dvc = tmp_path / "dvc"
    dvc.write_text(f"import subprocess\nsubprocess.run({COMMAND!r})\n")
    process = subprocess.Popen([sys.executable, str(dvc)], cwd=project.folder, stderr=subprocess.DEVNULL)
    wait_for_steps(project, process)
    below = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(below, timeout=30)
    assert alive == []
    assert 10 <= project.newest() < 5000
