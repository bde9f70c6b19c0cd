"""A training run that is killed at any moment goes on to the same adapter, byte for byte."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from train_params import train_params

from sqlora.params.lora import LoraParams
from sqlora.tokenizer import Encoded

REPOSITORY = Path(__file__).parents[2]
LORA = LoraParams(adapter="lora", layers=1, rank=4, scale=10.0, dropout=0.1, targets=("q_proj", "v_proj"))
TRAIN = train_params(
    iterations=40,
    learning_rate=2e-2,
    schedule="cosine",
    warmup=3,
    max_gradient_norm=1.0,
    report_every=5,
    validate_every=10,
    checkpoint_every=1,  # so that many moments lie within the saving of a checkpoint
    keep="best",
)
KILLS = 20


def examples(count: int) -> list[Encoded]:
    rng = np.random.default_rng(count)
    rows = []
    for number in range(count):
        prompt = [1, *rng.integers(3, 500, 20 + number % 17).tolist()]
        rows.append(Encoded((*prompt, 40, 41, 42 + number % 2, 2), len(prompt)))
    return rows


def train(
    model: Path, folder: Path, *, wave_seconds: float = 0.0, step_seconds: float = 0.0, seal_seconds: float = 0.0
) -> None:
    """In a process of its own: train, slowly if so wanted, and write the adapter and how many states were there."""
    os.chdir(folder)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - the process ends soon
    from sqlora.mlx import mx

    from sqlora.train import checkpoint, step, upper
    from sqlora.train.run import train_adapter

    slower(upper, "_through", wave_seconds)
    slower(step.Stepper, "step", step_seconds)
    slower(checkpoint, "_seal", seal_seconds)
    upper.WAVE_TOKENS = 200  # a dozen waves
    trained = train_adapter(model, examples(60), examples(6), LORA, TRAIN, report=lambda _: None)
    Path("reused").write_text(str(trained.reused))
    Path("published").write_text(str(trained.step))
    mx.save_safetensors("partial.safetensors", trained.adapter, metadata={"format": "mlx"})  # as the stage does
    os.replace("partial.safetensors", "adapter.safetensors")


def slower(owner: Any, name: str, seconds: float) -> None:
    """Let a function wait before it begins."""
    before = getattr(owner, name)

    def waiting(*arguments: Any) -> Any:
        time.sleep(seconds)
        return before(*arguments)

    setattr(owner, name, waiting)


@pytest.fixture(scope="module")
def expected(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The adapter of a run that nobody disturbs."""
    process = start(model_folder, folder := tmp_path_factory.mktemp("whole"))
    process.join()
    assert process.exitcode == 0
    assert (folder / "reused").read_text() == "0"
    assert 0 < int((folder / "published").read_text()) < TRAIN.iterations, "so that the best comes from a checkpoint"
    return (folder / "adapter.safetensors").read_bytes()


def start(model: Path, folder: Path, **options: float) -> multiprocessing.process.BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sqlora.train.run"])
    folder.mkdir(exist_ok=True)
    process = context.Process(target=train, args=(model, folder), kwargs=options)
    process.start()
    return process


def test_killed_at_twenty_random_moments(model_folder: Path, tmp_path: Path, expected: bytes) -> None:
    rng, folder, moments, saving, filling = random.Random(5), tmp_path / "killed", set(), 0, 0
    for kill in range(KILLS):
        process = start(model_folder, folder, seal_seconds=0.01)  # as on a disk that lets many a kill fall into it
        # Some kills fall into the frozen pass, the others within the next few steps and their checkpoints.
        before, more = newest(folder), rng.randrange(3)
        while process.is_alive():
            if stored(folder) > kill * 1000 if kill < 5 else newest(folder) > before + more:
                break
            time.sleep(0.001)
        time.sleep(rng.random() * (0.01 if kill < 5 else 0.03))
        process.kill()
        process.join()
        moments.add(newest(folder))
        saving += any(folder.glob(".sqlora/train/*/.partial-*"))
        filling += kill < 5 and not newest(folder) and stored(folder) > 0
        if (folder / "adapter.safetensors").exists():  # it was through
            assert (folder / "adapter.safetensors").read_bytes() == expected
            shutil.rmtree(folder)
    process = start(model_folder, folder)
    process.join()
    assert process.exitcode == 0
    assert (folder / "adapter.safetensors").read_bytes() == expected
    assert len(moments) > 8, moments
    assert saving, "no kill fell into the saving of a checkpoint"
    assert filling, "no kill fell into the frozen pass, with states on the disk"


def test_killed_between_the_waves_of_the_frozen_pass(model_folder: Path, tmp_path: Path, expected: bytes) -> None:
    process = start(model_folder, tmp_path, wave_seconds=0.3)
    while not (there := settled(tmp_path)) and process.is_alive():
        time.sleep(0.001)
    process.kill()
    process.join()
    there = settled(tmp_path)
    assert 0 < there < 66
    process = start(model_folder, tmp_path)
    process.join()
    assert process.exitcode == 0
    assert int((tmp_path / "reused").read_text()) == there
    assert (tmp_path / "adapter.safetensors").read_bytes() == expected


def stored(folder: Path) -> int:
    """Bytes of states, whether an index knows them or not."""
    return sum(path.stat().st_size for path in folder.glob(".sqlora/states/*/states-*"))


def settled(folder: Path) -> int:
    """The number of examples whose states are in an index."""
    return sum(path.read_text().count("\n") for path in folder.glob(".sqlora/states/*/index-*"))


def newest(folder: Path) -> int:
    """The last step that has a whole checkpoint."""
    names = [path.name for run in (folder / ".sqlora/train").glob("*") if run.is_dir() for path in run.iterdir()]
    return max((int(name.removeprefix("step-")) for name in names if name.startswith("step-")), default=0)


def test_the_trainer_ends_when_the_dvc_above_it_is_killed(model_folder: Path, tmp_path: Path) -> None:
    # A stand-in called dvc starts the trainer through a shell, as dvc does, and is killed.
    trainer = tmp_path / "trainer.py"
    trainer.write_text(
        "import sys, time\n"
        "from sqlora.train.interruption import watching\n"
        "with watching() as watch:\n"
        "    print('started', flush=True)\n"
        "    while not watch():\n"
        "        time.sleep(0.05)\n"
        "open('ended', 'w').write('x')\n"
    )
    dvc = tmp_path / "dvc"
    dvc.write_text(f"import subprocess\nsubprocess.run('{sys.executable} trainer.py; true', shell=True)\n")
    process = subprocess.Popen([sys.executable, str(dvc)], cwd=tmp_path, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"started\n"
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while not (tmp_path / "ended").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_a_checkpoint_and_the_next_run_goes_on(
    model_folder: Path, tmp_path: Path, expected: bytes, number: signal.Signals
) -> None:
    code = "import sys; sys.path[:0] = sys.argv[2], sys.argv[2] + '/..'; import pathlib, test_kill_train as t\n"
    code += "from sqlora.stage import run\n"
    code += "run(lambda: t.train(pathlib.Path(sys.argv[1]), pathlib.Path('.'), step_seconds=float(sys.argv[3])))\n"
    command = [sys.executable, "-c", code, str(model_folder), str(Path(__file__).parent)]
    # A second a step: the run is not through before the signal comes.
    process = subprocess.Popen([*command, "1"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    while not newest(tmp_path) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait() == 130
    assert 0 < newest(tmp_path) < TRAIN.iterations
    assert not (tmp_path / "adapter.safetensors").exists()
    done = subprocess.run([*command, "0"], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "adapter.safetensors").read_bytes() == expected
