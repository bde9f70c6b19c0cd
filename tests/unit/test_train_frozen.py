"""States of the frozen layers: computed once, stored, compared with their checksums, and computed again."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from sqlora.mlx import mx

import cuda_on_cpu
import numpy as np
import pytest
from filelock import FileLock
from train_project import TrainProject
from train_runs import LORA, arrays, equal, examples, fresh_start, read_rows, run, without_compiler

from sqlora.errors import SqloraError
from sqlora.model import load_base
from sqlora.train import inputs as inputs_module
from sqlora.train import run as run_module
from sqlora.train import upper as upper_module
from sqlora.train.interruption import Interrupted
from sqlora.train.room import see_to_room
from sqlora.train.states import StateStore, key_of
from sqlora.train.stores import ROOT as STATES
from sqlora.train.stores import bytes_of
from sqlora.train.upper import Upper, fill_store

pytestmark = pytest.mark.usefixtures("own_folder")


def test_states_do_not_depend_on_what_else_is_computed(model_folder: Path, tmp_path: Path) -> None:
    rows = [row.tokens[:-1] for row in examples(12)]
    buckets = (10, 14, 20)
    width = load_base(model_folder)[1]["hidden_size"]
    together = StateStore(tmp_path / "one", width, "float32")
    fill_store(together, model_folder, 2, rows, buckets)
    apart = StateStore(tmp_path / "two", width, "float32")
    for row in reversed(rows):
        fill_store(apart, model_folder, 2, [row], buckets)
    for row in rows:
        assert np.array_equal(read_rows(together, [key_of(row)], 20), read_rows(apart, [key_of(row)], 20))


def test_frozen_layers_by_kernels_of_their_own_give_what_mlx_gives(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row.tokens for row in examples()]
    ran, found = cuda_on_cpu.use(monkeypatch, tmp_path), []
    without_compiler(monkeypatch)
    width = load_base(model_folder)[1]["hidden_size"]
    for own in (False, True):
        monkeypatch.setattr("sqlora.train.cuda.kernels.has_cuda", lambda own=own: own)
        monkeypatch.setattr(mx, "default_device", lambda own=own: mx.Device(mx.gpu if own else mx.cpu))
        store = StateStore(tmp_path / f"states-{own}", width, "float32")
        fill_store(store, model_folder, 2, rows, (10, 14, 20))
        found.append(read_rows(store, [key_of(row) for row in rows], 20))
        assert set(ran) == ({"rows", "gated"} if own else set())
    assert np.abs(found[0]).max() > 1e-2
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=3e-5)


def test_what_states_are_waited_for_is_the_frozen_passs(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, fill, load = [0.0], inputs_module.fill_together, Upper.load

    def passed(seconds: float) -> None:
        clock[0] += seconds

    def filled(*arguments: Any) -> Any:
        passed(1)
        filling = fill(*arguments)
        return dataclasses.replace(filling, finish=lambda: (passed(20), filling.finish()))

    monkeypatch.setattr(run_module, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(inputs_module, "fill_together", filled)
    monkeypatch.setattr(Upper, "load", lambda self, *group: (passed(300), load(self, *group)))
    assert run(model_folder, iterations=2).frozen_seconds == 21, "without the reading of the trained layers"


@pytest.mark.parametrize(
    ("most", "wave", "expected"),
    [(0, 10**6, [12]), (30_000, 10**6, [4, 8]), (10**9, 10**6, [0, 12]), (10**9, 60, [4, 3, 3, 0, 2])],
)
def test_on_cuda_the_last_states_are_written_later(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, wave: int, expected: list[int]
) -> None:
    rows = [row.tokens[:-1] for row in examples(12)]
    width = load_base(model_folder)[1]["hidden_size"]
    monkeypatch.setattr("sqlora.train.upper.BATCH_TOKENS", 40)
    monkeypatch.setattr("sqlora.train.upper.WAVE_TOKENS", wave)
    at_once = StateStore(tmp_path / "one", width, "float32")
    fill_store(at_once, model_folder, 2, rows, (10, 14, 20))
    monkeypatch.setattr("sqlora.train.upper.has_cuda", lambda: True)
    monkeypatch.setattr("sqlora.train.upper._WRITTEN_LATER", most)
    sizes: list[tuple[int, bool]] = []
    add = StateStore.add

    def counted(self: StateStore, states: Any, *, later: bool = False) -> None:
        def each() -> Iterator[Any]:
            for one in states:
                sizes[place] = sizes[place][0] + 1, later
                yield one

        place = len(sizes)
        sizes.append((0, later))
        add(self, each(), later=later)

    numpy, threads = upper_module._numpy, set()
    monkeypatch.setattr(upper_module, "_numpy", lambda one: (threads.add(threading.current_thread()), numpy(one))[1])
    monkeypatch.setattr(StateStore, "add", counted)
    store = StateStore(tmp_path / "two", width, "float32")
    fill_store(store, model_folder, 2, rows, (10, 14, 20))
    store.wait()
    assert threads == {threading.current_thread()}, "no other computes with MLX"
    assert [later for _, later in sizes] == [False] * (len(expected) - (most > 0)) + [True] * (most > 0)
    assert [count for count, _ in sizes] == expected
    at_once.settle()
    store.settle()
    assert (tmp_path / "one/states-0.bin").read_bytes() == (tmp_path / "two/states-0.bin").read_bytes()
    assert (tmp_path / "one/index-0.jsonl").read_text() == (tmp_path / "two/index-0.jsonl").read_text()


def test_states_that_cannot_be_written_end_the_run_before_its_first_step(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = StateStore._append

    def full(self: StateStore, *given: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.1)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, *given)

    monkeypatch.setattr(StateStore, "_append", full)
    monkeypatch.setattr("sqlora.train.upper.has_cuda", lambda: True)
    steppers: list[Any] = []
    monkeypatch.setattr("sqlora.train.run.Stepper", lambda *_, **__: steppers.append(1))
    with pytest.raises(OSError, match="No space left"):
        run(model_folder)
    assert not steppers


def test_with_and_without_stored_states_a_run_learns_the_same(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    plain_read = StateStore.read
    monkeypatch.setattr(
        StateStore, "read", lambda store, keys, *places: (read.append(len(keys)), plain_read(store, keys, *places))[1]
    )
    stored = run(model_folder, iterations=8)
    assert (stored.computed, stored.reused) == (6, 0)
    assert sum(read) >= 8 * 2, "each step's inputs come from the store"
    read.clear()
    plain = run(model_folder, iterations=8, states_gb=0.0)
    assert (plain.computed, plain.reused, read) == (0, 0, [])
    assert [one.iteration for one in stored.reports] == [0, 8]
    for one, other in zip(stored.reports, plain.reports, strict=True):
        assert (one.train_loss, one.valid_loss) == pytest.approx((other.train_loss, other.valid_loss), abs=2e-4)
    for name, value in arrays(stored).items():
        assert np.allclose(value, arrays(plain)[name], atol=1e-4)


def test_another_learning_rate_reuses_the_states(model_folder: Path) -> None:
    first = run(model_folder, iterations=2)
    second = run(model_folder, iterations=8, learning_rate=1e-3)
    assert first.computed + second.computed == 6
    assert second.reused == first.computed
    third = run(model_folder, iterations=8, lora=dataclasses.replace(LORA, rank=2))
    assert (third.computed, third.reused) == (0, 6)
    other = run(model_folder, iterations=8, lora=dataclasses.replace(LORA, layers=1))
    assert (other.computed, other.reused) == (6, 0)


def test_damaged_states_are_computed_again(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[weakref.ref[Upper]] = []
    alive: list[bool] = []

    def make(self: Upper, *given: Any) -> None:
        plain(self, *given)
        made.append(weakref.ref(self))

    def fill(*given: Any) -> int:
        alive.extend(one() is not None for one in made[-1:])
        monkeypatch.setattr(run_module, "peak_memory", lambda: 5.0)  # from now on
        return fill_store(*given)

    plain = Upper.__init__
    monkeypatch.setattr(Upper, "__init__", make)
    monkeypatch.setattr(inputs_module, "fill_store", fill)
    settings: dict[str, Any] = {"iterations": 8, "learning_rate": 1e-3}
    whole = arrays(run(model_folder, **settings))
    (file,) = (tmp_path / ".sqlora/states").glob("*/states-0.bin")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    shutil.rmtree(tmp_path / ".sqlora/train")
    capsys.readouterr()
    monkeypatch.setattr(run_module, "peak_memory", lambda: 1.0)
    again = run(model_folder, **settings)
    assert (again.computed, again.reused) == (1, 5)
    assert again.frozen_peak == 5.0, "of the pass that computed something"
    printed = capsys.readouterr()
    assert printed.err.count("found 1 examples' states with other bytes") == 1
    assert [line for line in printed.out.splitlines() if "computed" in line] == [
        "frozen layers: 1 examples computed, 5 reused, 0.00 GB"
    ]
    assert len(made) == 3
    assert alive == [False], "the trained layers have left before frozen ones are computed"
    assert {path.name for path in file.parent.iterdir()} == {"states-0.bin", "index-0.jsonl", "lock-0"}
    assert equal(arrays(again), whole)
    shutil.rmtree(tmp_path / ".sqlora/train")
    third = run(model_folder, **settings)
    assert (third.computed, third.reused) == (0, 6)
    assert "warning" not in capsys.readouterr().err
    assert equal(arrays(third), whole)


def test_a_run_that_ends_early_does_not_wait_for_the_check(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(model_folder, iterations=2)
    looked: list[str] = []
    begun, ended = threading.Event(), threading.Event()
    damaged = StateStore.damaged

    def slow(self: StateStore, key: str) -> list[Any]:
        looked.append(key)
        begun.set()
        time.sleep(0.5)
        return []

    def checking(self: StateStore, *given: Any) -> Any:
        try:
            return damaged(self, *given)
        finally:
            ended.set()

    def interrupted(*_: Any) -> None:
        assert begun.wait(10)
        raise KeyboardInterrupt

    monkeypatch.setattr("sqlora.train.states._CHECKERS", 1)
    monkeypatch.setattr(StateStore, "_unsound", slow)
    monkeypatch.setattr(StateStore, "damaged", checking)
    monkeypatch.setattr(Upper, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(model_folder, iterations=2, learning_rate=1e-3)
    assert ended.wait(10)
    assert len(looked) == 1


def test_states_are_checked_while_weights_are_read(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(model_folder, iterations=2)
    load, damaged, read = Upper.load, StateStore.damaged, StateStore.read
    loaded, checked = threading.Event(), threading.Event()
    seen: list[bool] = []

    def loading(self: Upper, *given: Any) -> None:
        load(self, *given)
        loaded.set()

    def checking(self: StateStore, *given: Any) -> Any:
        seen.append(loaded.wait(10))
        time.sleep(0.2)
        checked.set()
        return damaged(self, *given)

    def reading(self: StateStore, *given: Any) -> Any:
        assert checked.is_set(), "no state is used before"
        return read(self, *given)

    monkeypatch.setattr(Upper, "load", loading)
    monkeypatch.setattr(StateStore, "damaged", checking)
    monkeypatch.setattr(StateStore, "read", reading)
    second = run(model_folder, iterations=2, learning_rate=1e-3)
    assert (first.reused, second.computed, seen) == (0, 0, [True])


def test_states_that_are_there_need_no_room(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(model_folder, iterations=2)
    full = shutil.disk_usage("/")._replace(free=0)
    monkeypatch.setattr("sqlora.train.room.shutil.disk_usage", lambda _: full)
    again = run(model_folder, iterations=2, learning_rate=1e-3)
    assert again.computed == 0
    with pytest.raises(SqloraError, match=r"0\.0 GB on the disk"):
        run(model_folder, lora=dataclasses.replace(LORA, layers=1), iterations=2)


def test_runs_that_share_a_store_add_to_parts_of_their_own(model_folder: Path, tmp_path: Path) -> None:
    alone = arrays(run(model_folder, iterations=2))
    store = next((tmp_path / ".sqlora/states").iterdir())
    fresh_start(tmp_path)
    store.mkdir(parents=True)
    with FileLock(store / "lock-0"):  # another run with the same base, somewhere in its frozen pass
        (store / "states-0.bin").write_bytes(b"half a row")
        assert equal(arrays(run(model_folder, iterations=2)), alone)
    assert (store / "states-0.bin").read_bytes() == b"half a row"
    assert (store / "states-1.bin").stat().st_size


def test_the_frozen_pass_can_be_interrupted(model_folder: Path, tmp_path: Path) -> None:
    config = load_base(model_folder)[1]
    store = StateStore(tmp_path / "states", config["hidden_size"], "float32")
    inputs = [row.tokens[:-1] for row in examples()]
    asked = iter([False, True])
    with pytest.raises(Interrupted):
        fill_store(store, model_folder, 2, inputs, (16,), lambda: next(asked))
    assert fill_store(store, model_folder, 2, inputs, (16,)) == len(inputs)


def test_no_room_for_the_states(model_folder: Path) -> None:
    other = STATES / "another"
    other.mkdir(parents=True)
    (other / "states-0.bin").write_bytes(bytes(1000))
    with pytest.raises(SqloraError, match=r"room for 1e-09 GB by train\.states_gb.*e-\d+ GB for.*train\.states_gb 0"):
        run(model_folder, states_gb=1e-9)
    assert other.is_dir(), "nothing is dropped for a run that is refused"


@pytest.mark.parametrize(("size", "dropped"), [(3_000, False), (8_000, True)])
def test_other_settings_states_go_where_the_disk_is_full(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], size: int, dropped: bool
) -> None:
    mine, other = STATES / "mine", STATES / "other"
    other.mkdir(parents=True)
    (other / "states-0.bin").write_bytes(bytes(5_000))

    def usage(_: object) -> shutil._ntuple_diskusage:
        return shutil._ntuple_diskusage(10_000, 0, 9_000 - bytes_of(STATES))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    store = StateStore(mine, size, "uint8")
    see_to_room(store, {"a": 1}, 1.0, (0,))
    assert other.exists() != dropped
    assert ("dropped the states of 1 earlier settings" in capsys.readouterr().out) == dropped


def needs(model_folder: Path, tmp_path: Path, seeds: range) -> tuple[int, list[dict[str, np.ndarray]]]:
    """Of runs that each choose other examples, each from nothing: the most bytes of states, and their adapters."""
    most, adapters = 0, []
    for seed in seeds:
        fresh_start(tmp_path)
        adapters.append(arrays(run(model_folder, iterations=1, seed=seed)))
        most = max(most, bytes_of(STATES))
    fresh_start(tmp_path)
    return most, adapters


def test_what_a_run_does_not_use_makes_room(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = range(6)
    most, expected = needs(model_folder, tmp_path, seeds)
    for seed in seeds:
        run(model_folder, iterations=1, seed=seed)
    (store,) = STATES.iterdir()
    assert bytes_of(store) > most, "runs of other seeds share a store"
    fresh_start(tmp_path)
    capsys.readouterr()
    reused, dropped = [], []
    for seed in [*seeds, *seeds]:
        shutil.rmtree(tmp_path / ".sqlora/train", ignore_errors=True)
        trained = run(model_folder, iterations=1, seed=seed, states_gb=most / 1e9)
        assert bytes_of(STATES) <= most
        assert equal(arrays(trained), expected[seed])
        reused.append(trained.reused)
        dropped += re.findall(
            r"dropped the states of \d examples that this run does not use \(0\.00 GB\)", printed(capsys)
        )
    assert reused[0] == 0
    assert min(reused[1:]) >= 2, "those that a run does use stay, validation's at least"
    assert len(dropped) > 2
    assert len(list(STATES.iterdir())) == 1


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    output: str = capsys.readouterr().out
    return output


def test_damaged_states_and_other_examples_leave_the_disk_when_the_limit_falls(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    most, expected = needs(model_folder, tmp_path, range(1))
    for seed in range(6):
        run(model_folder, iterations=1, seed=seed)
    (file,) = STATES.glob("*/states-0.bin")
    content = bytearray(file.read_bytes())
    content[10] ^= 1
    file.write_bytes(content)
    shutil.rmtree(tmp_path / ".sqlora/train")
    capsys.readouterr()
    again = run(model_folder, iterations=1, seed=0, states_gb=most / 1e9)
    assert bytes_of(STATES) <= most
    assert (again.computed, again.reused) == (1, 1)
    assert "found 1 examples' states with other bytes" in capsys.readouterr().err
    assert equal(arrays(again), expected[0])
    shutil.rmtree(tmp_path / ".sqlora/train")
    assert run(model_folder, iterations=1, seed=0, states_gb=most / 1e9).computed == 0
    assert "warning" not in capsys.readouterr().err


def test_states_that_another_run_uses_stay_beyond_the_limit(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    most, expected = needs(model_folder, tmp_path, range(1))
    for seed in range(1, 6):
        run(model_folder, iterations=1, seed=seed)
    (store,) = STATES.iterdir()
    before = (store / "states-0.bin").read_bytes()
    with FileLock(store / "lock-0"):
        assert equal(arrays(run(model_folder, iterations=1, seed=0, states_gb=most / 1e9)), expected[0])
    assert (store / "states-0.bin").read_bytes() == before
    assert capsys.readouterr().out.count("another run uses these states, too; they stay") == 1


@pytest.mark.parametrize("why", ["no room", "an error"])
def test_without_room_for_a_copy_all_states_are_computed_again(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], why: str
) -> None:
    most, expected = needs(model_folder, tmp_path, range(1))
    for seed in range(1, 6):
        run(model_folder, iterations=1, seed=seed)
    disk = bytes_of(STATES) + 1000

    def usage(_: object) -> shutil._ntuple_diskusage:
        return shutil._ntuple_diskusage(disk, 0, disk - bytes_of(STATES))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if why == "no room":
        monkeypatch.setattr(shutil, "disk_usage", usage)
    else:
        monkeypatch.setattr(StateStore, "_copy", full)
    capsys.readouterr()
    trained = run(model_folder, iterations=1, seed=0, states_gb=most / 1e9)
    assert (trained.computed, trained.reused) == (2, 0)
    assert "dropped the states of all 6 examples" in capsys.readouterr().out
    assert bytes_of(STATES) <= most
    assert equal(arrays(trained), expected[0])


def test_ranks_make_room_in_the_store_they_share(model_folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"iterations": 1, "batch_size": 4}
    shared, alone = (TrainProject(tmp_path / name, model_folder) for name in ("shared", "alone"))
    shared.run(**settings, seed=1)
    alone.run(**settings, seed=0)
    most = bytes_of(alone.folder / STATES) + 100
    shared.run(**settings, seed=0, workers=2, states_gb=most / 1e9)
    assert bytes_of(shared.folder / STATES) <= most
    (kept,) = shared.folder.glob(".sqlora/states/*/states-2.bin")
    assert kept.stat().st_size, "validation's, at least"
    computed, reused = (shared.summary()[f"states_{name}"] for name in ("computed", "reused"))
    assert computed + reused == alone.summary()["states_computed"]
    assert min(computed - 1, reused - 4) > 0
    assert np.abs(shared.adapter() - alone.adapter()).max() < 1e-5


def test_another_mlx_computes_states_of_its_own(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(model_folder, iterations=2)
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "99.0" if name == "mlx" else version(name))
    assert run(model_folder, iterations=2, learning_rate=1e-3).reused == 0
    assert len(list(STATES.iterdir())) == 2
