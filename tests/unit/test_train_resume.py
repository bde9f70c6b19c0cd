"""Checkpoints: runs that end early go on to the same bits, and what is damaged or full is met."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import resource
import shutil
import threading
import time
from pathlib import Path
from typing import Any, cast

from sqlora.mlx import mx

import numpy as np
import pytest
from filelock import FileLock
from train_runs import LORA, arrays, as_on_cuda, equal, fresh_start, run

from sqlora.errors import SqloraError
from sqlora.train import checkpoint
from sqlora.train.report import Report
from sqlora.train.step import Stepper
from sqlora.train.summary import summarise

pytestmark = pytest.mark.usefixtures("own_folder")


def measured(report: Report) -> tuple[object, ...]:
    """What does not depend on the machine."""
    return report.iteration, report.train_loss, report.valid_loss, report.learning_rate, report.gradient_norm


@pytest.mark.parametrize(
    ("ends", "adapter"),
    [
        (0, "lora"),
        (1, "lora"),
        (3, "lora"),
        (5, "lora"),
        (8, "lora"),
        (1, "dora"),
        (5, "dora"),
        (3, "cuda"),
        (8, "cuda"),
    ],
)
def test_a_run_that_was_asked_to_end_goes_on_to_the_same_bits(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: int, adapter: str
) -> None:
    settings: dict[str, Any] = {
        "iterations": 12,
        "report_every": 2,
        "validate_every": 5,
        "checkpoint_every": 4,
        "keep": "best",
        "schedule": "cosine",
    }
    if adapter == "cuda":
        as_on_cuda(monkeypatch)
        lora = LORA
    else:
        lora = dataclasses.replace(LORA, adapter=adapter, dropout=0.2)
    whole = run(model_folder, lora=lora, **settings)
    fresh_start(tmp_path)
    asked = iter([False] * (2 * ends) + [True] * 100)
    with monkeypatch.context() as patch:
        patch.setattr("sqlora.train.interruption.Watch.__call__", lambda _: next(asked))
        with pytest.raises(KeyboardInterrupt):
            run(model_folder, lora=lora, **settings)
    resumed = run(model_folder, lora=lora, **settings)
    assert equal(arrays(whole), arrays(resumed))
    assert list(whole.adapter) == list(resumed.adapter), "the file's bytes depend on the order, too"
    assert whole.step == resumed.step
    assert list(map(measured, whole.reports)) == list(map(measured, resumed.reports))


def test_a_run_that_goes_on_from_its_end_tells_the_time_and_memory_of_all_of_it(model_folder: Path) -> None:
    first, again = run(model_folder, iterations=4), run(model_folder, iterations=4)
    # The first one's seconds behind its last checkpoint are lost; the second one's, in which nothing happens, count.
    assert again.train_seconds > 0.5 * first.train_seconds > 0
    assert again.validation_seconds == pytest.approx(first.validation_seconds)
    figures = dataclasses.replace(again, peaks=[0.0])
    assert summarise(figures, 1, 1, 1)["peak_memory_gb"] == max(report.peak_memory_gb for report in first.reports) > 0


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_a_run_that_was_asked_to_end_in_a_validation_goes_on_to_the_same_bits(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    settings: dict[str, Any] = {
        "iterations": 10,
        "report_every": 2,
        "validate_every": 5,
        "checkpoint_every": 4,
        "keep": "best",
        "count": 6,
    }
    lora = dataclasses.replace(LORA, dropout=0.2)
    computed: list[int] = []
    losses = Stepper.losses

    def counting(stepper: Stepper, ready: Any) -> Any:
        computed.append(ready.counted)
        return losses(stepper, ready)

    monkeypatch.setattr(Stepper, "losses", counting)
    whole = run(model_folder, lora=lora, **settings)
    assert len(computed) == 6, "each of the three validations, of steps 0, 5 and 10, has two batches"
    fresh_start(tmp_path)
    computed.clear()
    with monkeypatch.context() as patch:
        patch.setattr("sqlora.train.interruption.Watch.__call__", lambda _: len(computed) == batch)
        with pytest.raises(KeyboardInterrupt):
            run(model_folder, lora=lora, **settings)
    assert len(computed) == batch
    newest = max((tmp_path / ".sqlora/train").glob("*/step-*"))
    assert newest.name == f"step-{batch // 2 * 5:08d}"
    resumed = run(model_folder, lora=lora, **settings)
    assert equal(arrays(whole), arrays(resumed))
    assert whole.step == resumed.step
    assert list(map(measured, whole.reports)) == list(map(measured, resumed.reports))


def test_a_run_without_a_report_before_it_was_interrupted_in_its_last_validation_tells_its_speed(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"iterations": 5, "report_every": 10, "validate_every": 10, "count": 6}
    computed: list[Stepper] = []
    losses = Stepper.losses
    monkeypatch.setattr(Stepper, "losses", lambda *both: (computed.append(both[0]), losses(*both))[1])
    with monkeypatch.context() as patch:
        patch.setattr("sqlora.train.interruption.Watch.__call__", lambda _: len(computed) == 3)  # of two and two
        with pytest.raises(KeyboardInterrupt):
            run(model_folder, **settings)
    resumed = run(model_folder, **settings)
    assert [report.iteration for report in resumed.reports] == [0, 5]
    assert cast(float, summarise(resumed, 1, 1, 1)["tokens_per_second"]) > 0


@pytest.mark.parametrize("at", ["_write", "_seal"])
def test_a_full_disk_while_a_checkpoint_is_saved(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    settings: dict[str, Any] = {"iterations": 6, "checkpoint_every": 2, "validate_every": 3, "keep": "best"}
    whole = arrays(run(model_folder, **settings))
    fresh_start(tmp_path)
    plain = getattr(checkpoint, at)

    def in_little_room(partial: Path, *what: Any) -> None:
        # In the background, where a real limit of the process's files would stop other threads, too.
        if "step-00000004" in partial.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(partial, *what)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, at, in_little_room)
        with pytest.raises(SqloraError, match=r"step-00000004: .* cannot be written.*step-00000002") as it:
            run(model_folder, **settings)
    folder = Path(it.value.where).parent
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "step-00000002"]
    steps: list[int] = []
    step = Stepper.step
    monkeypatch.setattr(Stepper, "step", lambda *arguments: (steps.append(1), step(*arguments))[1])
    assert equal(arrays(run(model_folder, **settings)), whole)
    assert len(steps) == 4


def test_pieces_that_come_to_the_host_have_one_type_and_are_not_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_PIECE", 10)
    sizes = [3, 6, 2, 30, 1, 9, 1]
    entries = [("adapter", str(number), mx.zeros(size)) for number, size in enumerate(sizes)]
    entries.insert(2, ("optimizer", "step", mx.array(1, dtype=mx.uint64)))
    pieces = [[array.size for _, _, array in piece] for piece in checkpoint._pieces(entries)]
    assert pieces == [[3, 6], [2], [30], [1, 9], [1], [1]]
    assert list(checkpoint._pieces([])) == []


@pytest.mark.parametrize("piece", [4, 2**28])
def test_a_checkpoint_comes_back_bit_by_bit_whatever_its_owner_does_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    going_on, waited = threading.Event(), []
    write = checkpoint._write
    monkeypatch.setattr(checkpoint, "_PIECE", piece)
    monkeypatch.setattr(checkpoint, "_write", lambda *what: (waited.append(going_on.wait(20)), write(*what)))
    bits = np.array([0, 1 << 31, 0x7FC00001, 0x3F800000, 1, 7], dtype=np.uint32)
    adapter = {"a": mx.array(bits).view(mx.float32).reshape(2, 3), "b": mx.arange(3, dtype=mx.float32)[:, None]}
    optimizer = {"step": mx.array(2**40 + 1, dtype=mx.uint64), "rate": mx.array(0.5), "m": mx.zeros((0, 4))}
    losses, saver = [1.5], checkpoint.Saver(tmp_path)
    saver.save(checkpoint.Checkpoint(3, dict(adapter), optimizer, {}, {"since": losses}))
    losses.append(9.0)
    adapter["b"] += 1
    optimizer["step"] += 1
    going_on.set()
    saver.wait()
    assert waited == [True]
    found, warnings = checkpoint.load_latest(tmp_path)
    assert found is not None
    assert (found.step, found.record, found.best, warnings) == (3, {"since": [1.5]}, {}, [])
    assert np.array_equal(np.array(found.adapter["a"].view(mx.uint32)), bits.reshape(2, 3))
    assert found.adapter["b"].tolist() == [[0.0], [1.0], [2.0]]
    step = found.optimizer["step"]
    assert (step.item(), step.dtype, step.shape) == (2**40 + 1, mx.uint64, ())
    assert (found.optimizer["rate"].item(), found.optimizer["m"].shape) == (0.5, (0, 4))


def test_the_run_ends_when_its_last_checkpoint_is_on_the_disk(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = checkpoint._seal
    monkeypatch.setattr(checkpoint, "_seal", lambda partial: (time.sleep(0.3), plain(partial)))
    run(model_folder, iterations=6, checkpoint_every=2)
    (folder,) = [path for path in (tmp_path / ".sqlora/train").iterdir() if path.is_dir()]
    assert [path.name for path in checkpoint.steps(folder)] == ["step-00000002", "step-00000004", "step-00000006"]


def test_a_checkpoint_that_fails_last_is_not_lost_and_hides_no_other_error(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(partial: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_seal", full)
    with pytest.raises(SqloraError, match=r"step-00000004: .* cannot be written"):
        run(model_folder, iterations=4, checkpoint_every=4)
    assert "warning: " not in capsys.readouterr().err
    saver = checkpoint.Saver(tmp_path)
    saver.save(checkpoint.Checkpoint(1, {}, {}, {}, {}))
    saver.__exit__(ValueError)
    assert "warning: " in capsys.readouterr().err
    monkeypatch.setattr(checkpoint, "_seal", lambda _: [][0])
    saver = checkpoint.Saver(tmp_path)
    saver.save(checkpoint.Checkpoint(1, {}, {}, {}, {}))
    saver.__exit__(ValueError)
    assert "the last checkpoint is not there (IndexError('list index out of range'))" in capsys.readouterr().err
    saver = checkpoint.Saver(tmp_path)
    saver.save(checkpoint.Checkpoint(1, {}, {}, {}, {}))
    with pytest.raises(IndexError):
        saver.__exit__(None)


def test_files_that_the_disk_does_not_take(tmp_path: Path) -> None:
    saver, limits = checkpoint.Saver(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    saver.save(checkpoint.Checkpoint(1, {"a": mx.ones(3)}, {}, {}, {}))
    saver.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # of the process, and no other thread writes now
    try:
        saver.save(checkpoint.Checkpoint(2, {"a": mx.ones(3)}, {"m": mx.ones(1000)}, {}, {}))
        with pytest.raises(SqloraError, match=r"step-00000002: .* cannot be written.*step-00000001, the checkpoint"):
            saver.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_folder_that_is_gone_is_an_error_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_seal", lambda _: shutil.rmtree(tmp_path / "run"))
    saver = checkpoint.Saver(tmp_path / "run")
    saver.save(checkpoint.Checkpoint(1, {}, {}, {}, {}))
    with pytest.raises(SqloraError, match=r"step-00000001: .*cannot be written.* GB free"):
        saver.wait()


def test_what_a_killed_run_left_of_a_checkpoint_is_in_nobodys_way(tmp_path: Path) -> None:
    partial = tmp_path / ".partial-step-00000001"
    partial.mkdir()
    (partial / "adapter.safetensors").mkdir()
    save(tmp_path, 1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert loaded(tmp_path) == 1.0


def save(folder: Path, value: float) -> None:
    with checkpoint.Saver(folder) as saver:
        saver.save(checkpoint.Checkpoint(1, {"a": mx.array([value])}, {}, {}, {"value": value}))


def loaded(folder: Path) -> float:
    found, _ = checkpoint.load_latest(folder)
    assert found is not None
    assert found.adapter["a"].tolist() == [found.record["value"]]
    return float(found.record["value"])


def test_a_whole_checkpoint_is_never_taken_away_to_put_the_same_step_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "replace", None)
        save(tmp_path, 2.0)
    assert loaded(tmp_path) == 1.0
    (tmp_path / "step-00000001/adapter.safetensors").write_bytes(b"")
    save(tmp_path, 2.0)
    assert loaded(tmp_path) == 2.0


@pytest.mark.parametrize("manifest", ["{}", "[]", '{"record.json": "0"}'])
def test_a_manifest_that_does_not_name_all_files_is_damage(tmp_path: Path, manifest: str) -> None:
    save(tmp_path, 1.0)
    (tmp_path / "step-00000001/manifest.json").write_text(manifest)
    with pytest.raises(SqloraError, match=r"1 checkpoint damaged .*delete"):
        checkpoint.load_latest(tmp_path)


def test_damaged_checkpoints(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings: dict[str, Any] = {"iterations": 10, "checkpoint_every": 2}
    whole = arrays(run(model_folder, **settings))
    (folder,) = [path for path in (tmp_path / ".sqlora/train").iterdir() if path.is_dir()]
    kept = checkpoint.steps(folder)
    assert [path.name for path in kept] == ["step-00000006", "step-00000008", "step-00000010"]
    (kept[2] / "manifest.json").unlink()
    damaged = bytearray((kept[1] / "optimizer.safetensors").read_bytes())
    damaged[-3] ^= 1
    (kept[1] / "optimizer.safetensors").write_bytes(damaged)
    capsys.readouterr()
    assert equal(arrays(run(model_folder, **settings)), whole)
    output, warnings = capsys.readouterr()
    assert "going on from step-00000006" in output
    assert "going on from step-00000010" not in output
    assert "step-00000010: found no readable manifest" in warnings
    assert warnings.count("going back to the checkpoint before it") == 2
    assert "step-00000008: found optimizer.safetensors with another content" in warnings
    for path in checkpoint.steps(folder):
        (path / "adapter.safetensors").write_bytes(b"")
    with pytest.raises(SqloraError, match=r"3 checkpoints, all of them damaged.*delete"):
        run(model_folder, **settings)


def test_other_inputs_start_fresh(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(model_folder, iterations=4)
    assert "going on" not in capsys.readouterr().out
    run(model_folder, iterations=4)
    assert "going on from step-00000004" in capsys.readouterr().out
    # Neither changes what is learnt.
    run(model_folder, iterations=4, checkpoint_every=3, states_gb=2.0)
    assert "going on from step-00000004" in capsys.readouterr().out
    run(model_folder, iterations=4, states_gb=0.0)
    assert "going on" not in capsys.readouterr().out, "it does not even have the same part of the model in memory"
    run(model_folder, iterations=4, learning_rate=1e-3)
    output = capsys.readouterr().out
    assert "going on" not in output
    assert "starting fresh: the checkpoints in .sqlora/train are of 2 other runs" in output


def test_the_last_three_runs_keep_their_checkpoints_and_so_does_one_that_goes_on(
    model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def folders() -> set[Path]:
        return {path for path in checkpoint.ROOT.iterdir() if path.is_dir()}

    run(model_folder, iterations=1, learning_rate=1e-3)
    (first,) = folders()
    run(model_folder, iterations=1, learning_rate=2e-3)
    (second,) = folders() - {first}
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    with FileLock(first / "lock"):
        for rate in (3e-3, 4e-3, 5e-3):
            run(model_folder, iterations=1, learning_rate=rate)
    output = capsys.readouterr().out
    assert first in folders()
    assert second not in folders()
    assert f"dropped the checkpoints of an earlier run, {second.name}" in output
    assert first.name not in output


def test_on_a_mac_a_checkpoint_is_brought_through_the_drives_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []

    def full(descriptor: int, command: int) -> None:
        assert command == 51
        synced.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(checkpoint.sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", full)
    checkpoint._write(Path("partial"), {"adapter": {"a": mx.zeros(2)}}, "{}")
    checkpoint._seal(Path("partial"))
    names = {path.stat().st_ino: path.name for path in Path("partial").iterdir()}
    assert sorted(names[one] for one in synced[:-1]) == ["adapter.safetensors", "record.json"]
    assert names[synced[-1]] == "manifest.json"
