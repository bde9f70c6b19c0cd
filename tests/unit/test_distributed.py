"""Ranks: how they are started, what they tell each other, and how a step is divided."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import random
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sqlora.mlx import mx

import numpy as np
import psutil
import pytest
from contract import ROOT
from ranks_script import train
from safetensors.numpy import load_file
from train_params import train_params

from sqlora.distributed import launch
from sqlora.distributed.group import ALONE
from sqlora.errors import SqloraError
from sqlora.tokenizer import Encoded
from sqlora.train.batching import Packed, Padded, Sizes, used
from sqlora.train.buckets import bucket_of, choose_lengths
from sqlora.train.division import divide
from sqlora.train.validation import Data, Validator

# --- a step is divided ----------------------------------------------------------------------------------------------


def test_one_rank_has_the_batches_as_they_were_drawn() -> None:
    assert divide([[3, 1], [0]], [5, 9, 7, 8], (8, 9), 2) == [([3, 1], 9), ([0], 8)]


@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_the_ranks_together_have_every_row_once_and_none_has_much_more_than_another(size: int) -> None:
    rng = random.Random(size)
    for _ in range(50):
        lengths = [rng.randint(5, 120) for _ in range(60)]
        buckets = choose_lengths(lengths)
        rows, batch_size = rng.sample(range(60), rng.randint(1, 24)), rng.randint(1, 8)
        parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        shares = [divide(parts, lengths, buckets, batch_size, rank, size) for rank in range(size)]
        assert sorted(row for share in shares for batch, _ in share for row in batch) == sorted(rows)
        for share in shares:
            for batch, length in share:
                assert 1 <= len(batch) <= batch_size
                assert length == bucket_of(max(lengths[row] for row in batch), buckets)
        counts = [sum(len(batch) for batch, _ in share) for share in shares]
        assert max(counts) - min(counts) <= 1
        longest = max(bucket_of(lengths[row], buckets) for row in rows)
        sums = [sum(bucket_of(lengths[row], buckets) for batch, _ in share for row in batch) for share in shares]
        assert max(sums) - min(sums) <= longest


def test_rows_of_one_length_are_divided_evenly_and_accumulation_costs_no_extra_batch() -> None:
    parts = [[0, 1], [2, 3], [4, 5], [6, 7]]
    shares = [divide(parts, [9] * 8, (9,), 2, rank, 4) for rank in range(4)]
    assert [[len(batch) for batch, _ in share] for share in shares] == [[2]] * 4
    few = [divide([[0, 1]], [9] * 8, (9,), 2, rank, 4) for rank in range(4)]
    assert [len(share) for share in few] == [1, 1, 0, 0]


def test_a_rank_on_a_machine_of_its_own_knows_what_it_will_use() -> None:
    rng = random.Random(1)
    lengths = [rng.randint(5, 60) for _ in range(40)]
    sizes = Sizes(lengths, lengths)
    params = dataclasses.replace(train_params(batch_size=3, iterations=5), gradient_accumulation=2)
    for batching in (
        Padded(sizes, choose_lengths(lengths), params, 2, few_shapes=False),
        Packed(sizes, params, 2),
    ):
        mine = [used(batching, 5, 40, [rank]) for rank in range(2)]
        every = used(batching, 5, 40)
        assert set(mine[0]) | set(mine[1]) == set(every) == set(used(batching, 5, 40, [0, 1]))
        for rank, found in enumerate(mine):
            shares = [planned.chosen for step in range(5) for planned in batching.share(step, rank)]
            assert found == sorted({row for share in shares for row in share})
            assert len(found) < len(every) < 40
        assert batching.epoch == 7
        assert used(batching, 7, 40) == used(batching, 20, 40) == used(batching, 20, 40, [0, 1]) == list(range(40))


@pytest.mark.parametrize("packed", [False, True])
def test_validation_is_divided_as_well(packed: bool) -> None:
    examples = [Encoded(tuple(range(5 + 3 * (index % 7))), 2) for index in range(11)]
    lengths = None if packed else choose_lengths([len(example.tokens) - 1 for example in examples])
    seen: list[list[int]] = []

    def fetch(chosen: Sequence[int], starts: Sequence[int], tokens: int) -> np.ndarray:
        seen[-1] += chosen
        return np.zeros(tokens, dtype=np.int32)

    stepper: Any = SimpleNamespace(losses=lambda batch: mx.zeros(2))
    for rank in range(3):
        seen.append([])
        group: Any = SimpleNamespace(rank=rank, size=3, totals=list)
        assert Validator(Data(examples, fetch, lengths, 4), 2, group).losses(stepper) == (0.0, 0.0)
    assert sorted(index for share in seen for index in share) == list(range(11))
    assert [len(share) for share in seen] == [4, 4, 3]


# --- how ranks are started ------------------------------------------------------------------------------------------


def test_one_worker_starts_nothing() -> None:
    assert not launch.launched(1, None, "auto")


def test_ports_in_use_are_left_alone() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        port = taken.getsockname()[1]
        assert not launch._free(port)
        assert launch.free_ports(2, port - 1) != port - 1
    first = launch.free_ports(3)
    assert all(launch._free(port) for port in range(first, first + 3))


def test_the_ranks_get_what_they_need_in_their_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NCCL_NVLS_ENABLE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    local = launch._environment(["127.0.0.1"] * 2, "ring", Path("x"))
    assert local["NCCL_NVLS_ENABLE"] == "0"
    assert local["OMP_NUM_THREADS"] == "4"
    assert "OMP_NUM_THREADS" not in launch._environment(["a", "b"], "ring", Path("x"))
    monkeypatch.setenv("NCCL_NVLS_ENABLE", "1")
    assert launch._environment(["a", "b"], "nccl", Path("x"))["NCCL_NVLS_ENABLE"] == "1"


def test_the_launcher_does_not_wait_for_what_it_may_always_write(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("launcher", ROOT / "src/sqlora/distributed/launcher.py")
    assert spec
    assert spec.loader
    launcher = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(launcher)
    real, calls = select.select, []

    def record(*arguments: Any) -> Any:
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(select, "select", record)
    read, write = os.pipe()
    try:
        assert launcher._patient([read], [write], [], 1.0) == ([], [write], [])
        os.write(write, b"x")
        assert launcher._patient([read], [write], [], 1.0) == ([read], [write], [])
    finally:
        os.close(read)
        os.close(write)
    assert all(timeout == 0 for _, writing, _, timeout in calls if writing)
    assert calls[0][3] > 0


@pytest.mark.parametrize(
    ("content", "workers", "words"),
    [
        (None, 1, "no such file"),
        ("{", 1, "no hostfile"),
        ('[{"ips": []}]', 1, "no hostfile"),
        ('[{"ssh": "a", "ips": []}]', 1, "1 hosts"),
        ('{"backend": "smoke", "hosts": [{"ssh": "a"}, {"ssh": "b"}]}', 1, "smoke"),
        ('[{"ssh": "a"}, {"ssh": "b"}]', 2, "both hostfile"),
    ],
)
def test_a_hostfile_that_does_not_fit_is_refused(tmp_path: Path, content: str | None, workers: int, words: str) -> None:
    path = tmp_path / "hosts.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SqloraError, match=words):
        launch.launched(workers, str(path), "auto")


def test_a_hostfile_names_its_backend_unless_params_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.shutil, "which", lambda name: f"/usr/bin/{name}")
    path = tmp_path / "hosts.json"
    path.write_text(json.dumps({"backend": "jaccl", "hosts": [{"ssh": "a"}, {"ssh": "b"}]}))
    assert launch._hosts(1, str(path), "auto") == (["a", "b"], "jaccl")
    assert launch._hosts(1, str(path), "mpi") == (["a", "b"], "mpi")


def test_mpi_needs_its_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SqloraError, match=r"backend: mpi: found no program mpirun.*backend to auto"):
        launch._hosts(2, None, "mpi")
    (tmp_path / "mpirun").write_text("#!/bin/sh\n")
    (tmp_path / "mpirun").chmod(0o755)
    assert launch._hosts(2, None, "mpi") == (["127.0.0.1"] * 2, "mpi")


def test_more_workers_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SqloraError, match="a GPU for each worker"):
        launch._hosts(99, None, "nccl")


# --- three ranks over loopback --------------------------------------------------------------------------------------


def ranks(folder: Path, task: str, *options: str) -> tuple[int, str, str]:
    """Status, stdout and stderr on one line each."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/ranks_script.py"), task, *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not working_in(folder)
    return done.returncode, " ".join(done.stdout.split()), " ".join(done.stderr.split())


def working_in(folder: Path) -> list[int]:
    """Processes whose current folder this is."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # another user's, or just gone
            if process.cwd() == str(folder):
                found.append(process.pid)
    return found


@pytest.mark.parametrize("task", ["messages", "flags"])
def test_the_ranks_agree_and_the_first_one_speaks(tmp_path: Path, task: str) -> None:
    status, output, errors = ranks(tmp_path, task)
    assert (status, output, errors) == (0, "rank 0 speaks all through", "")


def test_no_sum_without_the_part_of_a_rank_that_is_gone(tmp_path: Path) -> None:
    status, _, errors = ranks(tmp_path, "one_is_gone")
    assert status == 1
    assert "rank 2 of 3 on 127.0.0.1: found its end by SIGKILL" in errors
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("task", ["reading", "sharing"])
def test_the_ranks_of_a_host_read_the_weights_once(model_folder: Path, tmp_path: Path, task: str) -> None:
    (tmp_path / "model").symlink_to(model_folder)
    status, output, errors = ranks(tmp_path, task)
    assert status == 0, errors
    assert output.startswith("rank 0 speaks")
    assert output.endswith("all through")


def test_machines_without_a_common_disk_train_to_the_same_adapter(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").symlink_to(model_folder)
    status, output, errors = ranks(tmp_path, "apart")
    assert status == 0, errors
    assert "going on from step-00000003" in output
    computed = []
    for rank in range(3):  # each has the states of its own rows alone: 8 of 24 in six steps of 4, and of validation
        (index,) = (tmp_path / f"disk-{rank}").glob(".sqlora/states/*/index-*.jsonl")
        assert index.name == f"index-{rank}.jsonl"
        computed.append(len(index.read_text().splitlines()))
    assert sum(computed) < 3 * 29
    assert len(list(tmp_path.glob("disk-0/.sqlora/train/*/step-*"))) == 2
    assert not list(tmp_path.glob("disk-[12]/.sqlora/train/*/step-*"))
    monkeypatch.chdir(tmp_path / "disk-0")
    shutil.rmtree(".sqlora")
    expected = train(ALONE).adapter
    for rank in range(3):
        found = load_file(tmp_path / f"disk-{rank}/adapter.safetensors")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert np.abs(np.array(value) - found[name]).max() < 1e-5


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("different", [], "rank 1 of 3: found another train than on rank 0"),
        ("one_fails", [], f"rank 2 on {socket.gethostname()}: error: there: found nothing"),
        ("one_exits", [], "rank 1 of 3 on 127.0.0.1: found its end with status 7"),
        ("stuck", ["--impatient"], "rank 1 of 3 on 127.0.0.1: found its end by SIGKILL"),
    ],
)
def test_a_failure_is_said_once_and_ends_all(tmp_path: Path, task: str, options: list[str], words: str) -> None:
    status, _, errors = ranks(tmp_path, task, *options)
    assert status == 1
    assert words in errors
    assert errors.count("error:") == 1
    assert "Traceback" not in errors
