"""The convert stage, run as DVC does, where the disk, the process or the model fails."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from ruamel.yaml import YAML
from test_fetch_convert_faults import Kitchen, assert_fails
from tiny_llama import write_model
from tiny_model import CONFIG, random_weights, write_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    return Kitchen(tmp_path)


@pytest.fixture
def small_disk(kitchen: Kitchen) -> Iterator[Path]:
    """A file system of 200 kB in the place of artifacts/, where this user may mount one."""
    place = kitchen.folder / "artifacts"
    place.mkdir()
    if not sys.platform.startswith("linux") or os.geteuid():
        pytest.skip("only root on Linux may mount a file system")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def save(kitchen: Kitchen, state: object) -> None:
    torch.save(state, kitchen.folder / "source/consolidated.00.pth")


def start(kitchen: Kitchen) -> psutil.Popen:
    """The convert stage as a process of its own."""
    with open(kitchen.folder / "params.yaml", "w", encoding="utf-8") as file:
        YAML().dump(kitchen.params, file)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(ROOT / "stages/convert.py"), "--source-model", "source", "--out", "artifacts/model"]
    pipe = subprocess.PIPE
    return psutil.Popen(command, cwd=kitchen.folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def converting_child(stage: psutil.Popen) -> psutil.Process:
    while stage.poll() is None:
        for child in stage.children():
            # One that has just ended has no command line any more.
            with contextlib.suppress(psutil.Error):
                if "sqlora.convert.child" in child.cmdline():
                    return child
        time.sleep(0.005)
    pytest.fail(f"the stage ended before it converted: {stage.stderr.read()}")


def test_bad_tensors_of_every_kind_are_listed_at_once(kitchen: Kitchen) -> None:
    write_checkpoint(kitchen.folder / "source")
    state = random_weights(CONFIG)
    del state["layers.0.ffn_norm.weight"]
    state |= {"extra": torch.zeros(2), "norm.weight": torch.zeros(47)}
    state["output.weight"] = state["output.weight"].to(torch.float64)
    save(kitchen, state)
    assert_fails(
        kitchen,
        kitchen.convert(),
        "found 4 problems",
        "layers.0.ffn_norm.weight is missing",
        "extra is not a tensor of this architecture",
        "norm.weight has shape (47,) where params.json implies (48,)",
        "output.weight is torch.float64",
    )


def test_a_value_that_is_not_finite(kitchen: Kitchen) -> None:
    write_checkpoint(kitchen.folder / "source")
    state = random_weights(CONFIG)
    state["layers.2.attention.wo.weight"][1, 1] = float("nan")
    save(kitchen, state)
    assert_fails(kitchen, kitchen.convert(), "tensor layers.2.attention.wo.weight: found 1 of 3072 values that are NaN")


def test_a_compressed_pickle_that_would_fill_the_memory(kitchen: Kitchen) -> None:
    write_checkpoint(kitchen.folder / "source")
    path = kitchen.folder / "source/consolidated.00.pth"
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    assert_fails(kitchen, kitchen.convert(), "found a damaged or foreign file (ValueError:", "is compressed)")


class TakesMemory:
    """weights_only admits this."""

    def __reduce__(self) -> tuple:
        return bytearray, (6 * 10**9,)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits a process's data")
def test_a_pickle_that_asks_for_gigabytes(kitchen: Kitchen) -> None:
    write_checkpoint(kitchen.folder / "source")
    save(kitchen, random_weights(CONFIG) | {"norm.weight": TakesMemory()})
    assert_fails(kitchen, kitchen.convert(), "source/consolidated.00.pth: found a damaged or foreign file (MemoryError")


def test_a_config_nested_without_end(kitchen: Kitchen) -> None:
    write_checkpoint(kitchen.folder / "source")
    (kitchen.folder / "source/params.json").write_text("[" * 100_000)
    assert_fails(kitchen, kitchen.convert(), "params.json", "no readable JSON")


def test_a_full_disk(kitchen: Kitchen, small_disk: Path) -> None:
    write_checkpoint(kitchen.folder / "source")
    assert_fails(kitchen, kitchen.convert(), "found no space left", "Free some space")
    assert list(small_disk.iterdir()) == []


def test_a_limit_on_the_size_of_files(kitchen: Kitchen) -> None:
    write_checkpoint(kitchen.folder / "source")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        run = kitchen.convert()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_fails(kitchen, run, "model-00001-of-00001.safetensors: found a limit on the size of a file", "ulimit -f")


def test_a_target_that_cannot_be_written(kitchen: Kitchen, request: pytest.FixtureRequest) -> None:
    write_checkpoint(kitchen.folder / "source")
    if os.geteuid():
        place = kitchen.folder / "artifacts"
        place.mkdir(mode=0o555)
    else:  # permissions do not stop root
        place = request.getfixturevalue("small_disk")
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    run = kitchen.convert()
    assert_fails(kitchen, run, "artifacts/.partial-model: found", "may read and write")


def test_a_conversion_that_the_system_kills(kitchen: Kitchen) -> None:
    write_checkpoint(kitchen.folder / "source")
    stage = start(kitchen)
    converting_child(stage).kill()
    output, errors = stage.communicate()
    run = subprocess.CompletedProcess([], stage.returncode, output, errors)
    assert_fails(kitchen, run, "ended with signal SIGKILL, which the system does when memory runs out")


def test_the_child_ends_with_the_stage(kitchen: Kitchen) -> None:
    write_checkpoint(kitchen.folder / "source")
    stage = start(kitchen)
    child = converting_child(stage)
    stage.kill()
    stage.communicate()
    child.wait(60)  # raises TimeoutExpired otherwise
    # It was killed before it had begun to write, and so was its child.
    assert not any(path.is_file() for path in (kitchen.folder / "artifacts").rglob("*"))


def test_an_interrupt_leaves_nothing(kitchen: Kitchen) -> None:
    write_checkpoint(kitchen.folder / "source")
    # What a shell runs in the background ignores interrupts, and so would the stage.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        stage = start(kitchen)
    finally:
        signal.signal(signal.SIGINT, before)
    child = converting_child(stage)
    child.suspend()  # so that it is not through before the signal comes
    stage.send_signal(signal.SIGINT)
    _, errors = stage.communicate(timeout=60)
    assert stage.returncode == 130, errors
    assert "Traceback" not in errors
    assert not child.is_running()
    assert list((kitchen.folder / "artifacts").iterdir()) == []


def test_hugging_face_folder_that_does_not_fit_itself(kitchen: Kitchen) -> None:
    write_model(kitchen.folder / "source")
    path = kitchen.folder / "source/config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"intermediate_size": 100, "vocab_size": 600}))
    assert_fails(
        kitchen,
        kitchen.convert(),
        "source/model.safetensors: found 11 problems",
        "model.embed_tokens.weight has shape (512, 64) where config.json implies (600, 64)",
    )
