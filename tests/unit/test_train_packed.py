"""Whole runs with examples one after another, by the CUDA kernels, which run on a CPU here."""

from __future__ import annotations

import dataclasses
import json
import shutil
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlora.mlx import mx

import cuda_on_cpu
import pytest
from tiny_llama import write_model
from train_runs import LORA, arrays, equal, fresh_start, run, without_compiler

from sqlora.convert.model import convert_model
from sqlora.model import load_lazily
from sqlora.params.lora import LoraParams
from sqlora.plan import memory
from sqlora.plan.shape import shape_of
from sqlora.train import run as run_module
from sqlora.train.cuda import kernels, layers
from sqlora.train.feed import Ready
from sqlora.train.fused import packs
from sqlora.train.gradients import Written
from sqlora.train.step import Stepper

ONE_LAYER = dataclasses.replace(LORA, layers=1)

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose heads the kernels know."""
    root = tmp_path_factory.mktemp("wide")
    source = write_model(root / "source", head_dim=64)
    (root / "model").mkdir()
    convert_model(source, root / "model", dtype="float16")
    return root / "model"


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> list[str]:
    """Kernels that run on the CPU, for the steps of a run; their names, as they run."""
    for module in (kernels, layers):
        monkeypatch.setattr(module, "usable", lambda dtype: kernels.type_name(dtype) in kernels.TYPES)
    monkeypatch.setattr(run_module, "has_cuda", lambda: True)
    without_compiler(monkeypatch)
    return cuda_on_cpu.use(monkeypatch, scratch)


def test_a_packed_run_learns_what_a_padded_one_does(
    wide_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_cuda: list[str]
) -> None:
    settings: dict[str, Any] = {"lora": ONE_LAYER, "batch_size": 6, "iterations": 2, "report_every": 1}
    found = []
    rows: list[set[int]] = []
    gradients = Written.gradients

    def noted(self: Written, vector: mx.array, batch: Ready) -> Any:
        rows[-1].add(len(batch.inputs))
        return gradients(self, vector, batch)

    monkeypatch.setattr(Written, "gradients", noted)
    for packed in (True, False):  # all examples are in each step, so both have the same ones
        rows.append(set())
        with monkeypatch.context() as patch:
            if not packed:
                patch.setattr(run_module, "packs", lambda *_: False)
            found.append(run(wide_folder, **settings))
        fresh_start(tmp_path)
    assert rows == [{1}, {6}]
    assert "attend_back_64" in on_cuda
    for one, other in zip(found[0].reports, found[1].reports, strict=True):
        for name in ("train_loss", "valid_loss_completion", "valid_loss_all"):
            mine, padded = getattr(one, name), getattr(other, name)
            assert mine == (None if padded is None else pytest.approx(padded, rel=1e-2))
    losses = [report.train_loss for report in found[0].reports if report.train_loss is not None]
    assert losses[-1] < losses[0]


def test_a_packed_run_that_was_asked_to_end_goes_on_to_the_same_bits(
    wide_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_cuda: list[str]
) -> None:
    settings: dict[str, Any] = {"lora": ONE_LAYER, "batch_size": 2, "iterations": 3, "checkpoint_every": 2}
    taken: list[int] = []
    step = Stepper.step

    def counted(self: Stepper, batches: Any, *given: Any) -> Any:
        taken.append(len(batches))
        return step(self, batches, *given)

    monkeypatch.setattr(Stepper, "step", counted)
    whole = run(wide_folder, **settings)
    assert len(taken) == 3
    fresh_start(tmp_path)
    taken.clear()
    with monkeypatch.context() as patch:
        patch.setattr("sqlora.train.interruption.Watch.__call__", lambda _: len(taken) == 1)
        with pytest.raises(KeyboardInterrupt):
            run(wide_folder, **settings)
    assert len(taken) == 1
    resumed = run(wide_folder, **settings)
    assert len(taken) == 3, "it goes on behind the first step"
    assert equal(arrays(whole), arrays(resumed))
    assert "attend_64" in on_cuda


def test_without_kernels_that_attend_a_run_is_padded_after_all(
    wide_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    on_cuda: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def some(names: tuple[str, ...], _: str) -> Mapping[str, bytes]:
        return {name: b"" for name in names if not name.startswith("attend")}

    monkeypatch.setattr(layers, "compiled", some)
    tried: list[bool] = []
    models: list[weakref.ref[Any]] = []
    plain, stepper = run_module._train, run_module.Stepper

    def train(*given: Any, packed: bool) -> Any:
        tried.append(packed)
        assert len(tried) != 2 or models[0]() is None, "the first try's weights are gone"
        return plain(*given, packed=packed)

    def make(upper: Any, *given: Any, **named: Any) -> Any:
        models.append(weakref.ref(upper))
        return stepper(upper, *given, **named)

    monkeypatch.setattr(run_module, "_train", train)
    monkeypatch.setattr(run_module, "Stepper", make)
    # Packed it takes examples 0 and 5, padded 3 and 2; 0 and 1 are those of the validation.
    found = run(wide_folder, lora=ONE_LAYER, batch_size=2, iterations=1, seed=4)
    assert (found.computed, found.reused) == (3 + 2, 0)
    assert "padded instead" in capsys.readouterr().err
    assert tried == [True, False]
    assert len(models) == 2
    assert not any(name.startswith("attend") for name in on_cuda)
    fresh_start(tmp_path)
    monkeypatch.setattr(run_module, "packs", lambda *_: False)
    assert equal(arrays(found), arrays(run(wide_folder, lora=ONE_LAYER, batch_size=2, iterations=1, seed=4)))


def test_what_is_packed_and_planned_to_be(
    wide_folder: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_cuda: list[str]
) -> None:
    def found(folder: Path = wide_folder, longest: int = 512, **changes: Any) -> bool:
        lora: LoraParams = dataclasses.replace(LORA, **changes)
        model, config = load_lazily(folder)
        result = packs(model.layers, lora, longest)
        config = json.loads((folder / "config.json").read_text()) | config
        assert memory.packs(shape_of(config), lora, "cuda", longest) == result
        return result

    assert found()
    assert not found(longest=513)
    assert not found(dropout=0.1)
    assert not found(adapter="dora")
    changed = tmp_path / "changed"
    for changes in ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, {"rope_traditional": True}):
        shutil.copytree(wide_folder, changed, dirs_exist_ok=True)
        config = json.loads((wide_folder / "config.json").read_text())
        (changed / "config.json").write_text(json.dumps(config | changes))
        assert not found(changed)
    assert not found(model_folder), "a float32, and heads of 16"
    with monkeypatch.context() as patch:
        for module in (layers, memory):
            patch.setattr(module, "attends", lambda: False)
        assert not found(), "an older device"
    monkeypatch.setattr(layers, "usable", lambda _: False)
    assert not packs(load_lazily(wide_folder)[0].layers, LORA, 100), "no CUDA device"
    config = json.loads((wide_folder / "config.json").read_text())
    for device in ("metal", "cpu"):
        assert not memory.packs(shape_of(config), LORA, device, 100)
