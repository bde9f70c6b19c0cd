"""The training engine on a tiny model: what a run does from its first step to its adapter, and what it refuses."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from sqlora.mlx import mx, tree_flatten

import numpy as np
import pytest
from filelock import FileLock
from mlx_lm.utils import load_model
from train_runs import (
    LORA,
    TRAIN,
    Arrays,
    arrays,
    as_on_cuda,
    batch_indices,
    batch_of,
    equal,
    examples,
    fresh_start,
    mean_loss,
    run,
)

from sqlora.count import count_adapter_parameters, count_parameters
from sqlora.distributed.group import ALONE, Group
from sqlora.errors import SqloraError
from sqlora.model import add_adapter, load_base
from sqlora.train import checkpoint
from sqlora.train import run as run_module
from sqlora.train.buckets import Planned, choose_lengths
from sqlora.train.checkpoint import flatten
from sqlora.train.engine import Engine
from sqlora.train.feed import Feed, transfer
from sqlora.train.gradients import Written
from sqlora.train.inputs import lengths_of, token_fetcher
from sqlora.train.interruption import Interrupted
from sqlora.train.layout import Layout
from sqlora.train.lora import adapter_config, add_lora
from sqlora.train.loss import make_batch
from sqlora.train.report import Meter, Report
from sqlora.train.run import train_adapter
from sqlora.train.step import Stepper
from sqlora.train.upper import Upper
from sqlora.train.validation import Data, Validator

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_only_the_adapter_of_the_top_layers_is_published_and_counts_agree(model_folder: Path, kind: str) -> None:
    _, config = load_base(model_folder)
    adapter = arrays(run(model_folder, lora=dataclasses.replace(LORA, adapter=kind), iterations=3))
    assert {name.rsplit(".", 1)[1] for name in adapter} == {"lora_a", "lora_b"} | ({"m"} if kind == "dora" else set())
    assert {name.split(".")[2] for name in adapter} == {"1", "2"}
    assert sum(value.size for value in adapter.values()) == count_adapter_parameters(
        config, adapter=kind, layers=2, rank=4, targets=LORA.targets
    )
    model, _ = load_base(model_folder)
    assert sum(value.size for _, value in tree_flatten(model.parameters())) == count_parameters(config)


@pytest.mark.parametrize("adapter", ["lora", "dora"])
@pytest.mark.parametrize("changes", [{}, {"loss": "all"}, {"optimizer": "adamw", "weight_decay": 0.01}], ids=str)
def test_training_lowers_the_loss_reports_it_and_the_adapter_reloads(
    model_folder: Path, tmp_path: Path, changes: dict[str, Any], adapter: str
) -> None:
    seen: list[Report] = []
    params, lora = dataclasses.replace(TRAIN, **changes), dataclasses.replace(LORA, adapter=adapter)
    trained = train_adapter(model_folder, examples(), examples(), lora, params, report=seen.append)
    assert seen == trained.reports
    assert [report.iteration for report in seen] == [0, 10, 15, 20, 30]
    assert [report.valid_loss is not None for report in seen] == [True, False, True, False, True]
    first, last = seen[0], seen[-1]
    assert first.valid_loss is not None
    assert last.valid_loss is not None
    assert last.valid_loss < first.valid_loss - 1
    assert last.valid_loss == (last.valid_loss_all if changes.get("loss") == "all" else last.valid_loss_completion)
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), trained.adapter)
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter_config(lora)))
    fresh, _ = load_base(model_folder)
    add_adapter(fresh, tmp_path)
    upper, rows = Upper(fresh, 0), examples()
    batch = batch_of(rows, 16, params.loss)
    assert mean_loss(upper, batch) == pytest.approx(last.valid_loss, abs=1e-3)


def test_dora_on_a_quantized_base_learns_reloads_and_generates(tmp_path: Path) -> None:
    from mlx_lm.utils import quantize_model, save_config, save_model
    from tiny_model import write_checkpoint

    from sqlora.convert.model import convert_model
    from sqlora.generate.run import generate
    from sqlora.params.generate import GenerateParams
    from sqlora.text import Example
    from sqlora.tokenizer import Tokenizer
    from sqlora.wikisql.form import LogicalForm

    plain, folder, adapter = (tmp_path / name for name in ("plain", "quantized", "adapter"))
    write_checkpoint(tmp_path / "source", dim=64, hidden_dim=128)  # whose rows are long enough for groups
    plain.mkdir()
    adapter.mkdir()
    convert_model(tmp_path / "source", plain, dtype="float32")
    model, config = quantize_model(*load_base(plain), group_size=32, bits=4)
    save_model(folder, model)
    save_config(config, config_path=folder / "config.json")
    lora = dataclasses.replace(LORA, adapter="dora")
    trained = run(folder, lora=lora, count=6)
    first, last = trained.reports[0].valid_loss, trained.reports[-1].valid_loss
    assert first is not None
    assert last is not None
    assert last < first - 1
    mx.save_safetensors(str(adapter / "adapters.safetensors"), trained.adapter)
    (adapter / "adapter_config.json").write_text(json.dumps(adapter_config(lora)))
    fresh, _ = load_base(folder)
    add_adapter(fresh, adapter)
    rows = examples()
    batch = batch_of(rows, 16, "completion")
    assert mean_loss(Upper(fresh, 0), batch) == pytest.approx(last, abs=1e-3)
    questions = [
        Example("1-1", text, ("notes",), ("text",), LogicalForm(0, 0, ())) for text in ("a question", "another")
    ]
    params = GenerateParams(2, 4, "none", None, workers=1, hostfile=None, backend="auto")
    found = generate(fresh, Tokenizer(plain), questions, params)
    assert [one.tokens <= 4 for one in found] == [True, True]


def test_two_runs_with_one_seed_are_equal_and_another_seed_is_not(model_folder: Path, tmp_path: Path) -> None:
    def once(seed: int) -> Arrays:
        fresh_start(tmp_path)
        return arrays(run(model_folder, lora=dataclasses.replace(LORA, dropout=0.2), iterations=5, seed=seed))

    assert equal(once(1), once(1))
    assert not equal(once(1), once(2))


def test_validation_does_not_change_training(model_folder: Path) -> None:
    lora = dataclasses.replace(LORA, dropout=0.3)
    often, never = (arrays(run(model_folder, lora=lora, iterations=6, validate_every=every)) for every in (1, 100))
    assert equal(often, never)


def test_accumulated_gradients_are_those_of_the_large_batch(model_folder: Path) -> None:
    rows = examples()
    upper = Upper(load_model(model_folder)[0], 0)
    upper.freeze()
    add_lora(upper, LORA, seed=1)
    before = {name: mx.array(value) for name, value in tree_flatten(upper.trainable_parameters())}

    def step(groups: list[list[int]]) -> tuple[float, float, Arrays]:
        upper.load_weights(list(before.items()), strict=False)
        stepper = Stepper(upper, LORA, TRAIN)
        batches = [
            make_batch(rows, Planned(group, 16, len(group), 0), token_fetcher(rows), "completion") for group in groups
        ]
        loss, norm = stepper.step(transfer(batches))
        return loss.item(), norm.item(), {k: np.array(v) for k, v in stepper.adapter().items()}

    large, parts = step([[0, 1, 2, 3, 4, 5]]), step([[0], [1, 2], [3, 4, 5]])
    assert parts[0] == pytest.approx(large[0], abs=1e-6)
    assert parts[1] == pytest.approx(large[1], rel=1e-6)
    assert all(np.allclose(parts[2][name], large[2][name], rtol=0, atol=1e-6) for name in large[2])


@pytest.mark.parametrize("kind", ["written", "automatic", "dora", "cuda"])
def test_compiled_steps_are_the_same_steps(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "automatic":
        monkeypatch.setattr("sqlora.train.gradients.supports", lambda _: False)
    lora = dataclasses.replace(LORA, adapter="dora") if kind == "dora" else LORA
    settings: dict[str, Any] = {"iterations": 4, "validate_every": 2, "batch_size": 4, "gradient_accumulation": 2}
    settings |= {"schedule": "linear", "warmup": 1, "max_gradient_norm": 0.5, "optimizer": "adamw", "weight_decay": 0.1}
    settings |= {"lora": lora, "count": 5}
    plain = run(model_folder, **settings)
    fresh_start(tmp_path)
    monkeypatch.setattr("sqlora.train.run.compiles", lambda: True)
    as_on = as_on_cuda(monkeypatch) if kind == "cuda" else None
    compiled = run(model_folder, **settings)
    if as_on is not None:
        assert len(as_on["merged"]) == 2, "a layer each"
        assert threading.main_thread() in as_on["sent"], "the inputs of a validation"
        assert len(as_on["sent"]) > 1, "the inputs of steps"
    for one, other in zip(compiled.reports, plain.reports, strict=True):
        assert one.valid_loss_completion == pytest.approx(other.valid_loss_completion, abs=1e-4)
        assert one.valid_loss_all == pytest.approx(other.valid_loss_all, abs=1e-4)
    assert all(np.allclose(value, arrays(compiled)[name], atol=1e-5) for name, value in arrays(plain).items())


def test_graphs_of_new_shapes_are_traced_while_the_device_works_on_others(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Any] = []
    gradients, step, evaluate = Written._gradients, Stepper.step, mx.eval
    monkeypatch.setattr(
        Written, "_gradients", lambda self, *arrays: (events.append(arrays[1].shape), gradients(self, *arrays))[1]
    )
    monkeypatch.setattr(Stepper, "step", lambda *one: (events.append("step"), step(*one))[1])
    monkeypatch.setattr("sqlora.train.engine.mx.eval", lambda *one: (events.append("wait"), evaluate(*one))[1])
    monkeypatch.setattr("sqlora.train.run.compiles", lambda: True)
    run(model_folder, iterations=6, validate_every=6)
    steps = [number for number, event in enumerate(events) if event == "step"]
    traced = [event for event in events if isinstance(event, tuple)]
    assert len(traced) == len(set(traced)) > 1, "each once"
    assert events[steps[0] + 1] == traced[0], "the first step traces its own"
    for one in range(1, len(traced)):
        assert events.index(traced[one]) == steps[one - 1] + 1 + (one == 1), "behind a step, before anyone waits for it"
    assert all(events[number + 1] == "wait" for number in steps[len(traced) - 1 :])


def test_what_is_not_compiled_is_not_traced_ahead(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    gradients = Written._gradients
    monkeypatch.setattr(Written, "_gradients", lambda *one: (calls.append(1), gradients(*one))[1])
    run(model_folder, iterations=6, validate_every=6)
    assert len(calls) == 6


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_validation_hands_over_few_layers_before_it_waits(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    rows, length = examples(), 16
    upper = Upper(load_model(model_folder)[0], 0)
    upper.freeze()
    add_lora(upper, LORA, seed=1)
    layout = Layout(flatten(upper.adapter()))
    batch = transfer([batch_of(rows, length, "all")])[0]
    vector = layout.join(flatten(upper.adapter()))
    plain = [one.item() for one in Written(upper, layout, LORA).losses(vector, batch)]
    model = Written(upper, layout, LORA, compiled=True)
    events: list[str] = []
    async_eval, evaluate = mx.async_eval, mx.eval
    monkeypatch.setattr(mx, "async_eval", lambda *one: (events.append("begun"), async_eval(*one)))
    monkeypatch.setattr(mx, "eval", lambda *one: (events.append("done"), evaluate(*one)))
    monkeypatch.setattr("sqlora.train.gradients._LAYERS_AHEAD", ahead)
    found = model.losses(vector, batch)
    layers = len(upper.layers)
    assert events == ["begun"] * ahead + ["begun", "done"] * (layers - ahead)
    assert [one.item() for one in found] == pytest.approx(plain, rel=1e-6)


def test_inputs_are_gathered_while_the_first_validation_goes_on(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Any] = []
    begin, losses = Feed.begin, Validator.losses
    monkeypatch.setattr(Feed, "begin", lambda self, step: (events.append(step), begin(self, step))[1])
    monkeypatch.setattr(Validator, "losses", lambda self, *one: (events.append("validation"), losses(self, *one))[1])
    run(model_folder, iterations=4, validate_every=2)
    assert events == [0, "validation", "validation", "validation"]


def test_compiled_dropout_follows_seed_and_step(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = dataclasses.replace(LORA, dropout=0.5)
    plain = arrays(run(model_folder, lora=lora, iterations=3))
    fresh_start(tmp_path)
    monkeypatch.setattr("sqlora.train.run.compiles", lambda: True)
    traced: list[int] = []  # by how many shapes there are more behind a step
    ahead = Stepper.look_ahead

    def counted(stepper: Stepper, batches: Any) -> None:
        before = len(stepper._traced)
        ahead(stepper, batches)
        traced.append(len(stepper._traced) - before)

    monkeypatch.setattr(Stepper, "look_ahead", counted)
    compiled = arrays(run(model_folder, lora=lora, iterations=3))
    assert sum(traced) > 0, "a mask is drawn for a graph that is traced, too, and must not count"
    assert all(np.allclose(value, compiled[name], atol=1e-5) for name, value in plain.items())


@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_gradient_checkpointing_changes_nothing_but_memory(model_folder: Path, tmp_path: Path, adapter: str) -> None:
    lora = dataclasses.replace(LORA, adapter=adapter)
    plain = arrays(run(model_folder, lora=lora, iterations=5))
    fresh_start(tmp_path)
    checkpointed = arrays(run(model_folder, lora=lora, iterations=5, gradient_checkpointing=True))
    assert all(np.allclose(plain[name], checkpointed[name], atol=1e-6) for name in plain)


@pytest.mark.parametrize("share", [None, 0.3, 2.0])
def test_long_gradients_are_shortened(model_folder: Path, monkeypatch: pytest.MonkeyPatch, share: float | None) -> None:
    # What the optimizer gets: what Adam makes of it hardly depends on its length.
    rows = examples()
    upper = Upper(load_model(model_folder)[0], 0)
    upper.freeze()
    add_lora(upper, LORA, seed=1)
    batch = batch_of(rows, 16, "completion")

    def gradient(most: float | None) -> tuple[np.ndarray, float]:
        stepper = Stepper(upper, LORA, dataclasses.replace(TRAIN, max_gradient_norm=most))
        given: list[np.ndarray] = []
        apply = stepper.optimizer.apply_gradients

        def recording(gradients: dict[str, mx.array], parameters: dict[str, mx.array]) -> Any:
            given.append(np.array(gradients["adapter"]))
            return apply(gradients, parameters)

        monkeypatch.setattr(stepper.optimizer, "apply_gradients", recording)
        _, norm = stepper.step(transfer([batch]))
        return given[0], norm.item()

    free, length = gradient(None)
    assert length == pytest.approx(float(np.linalg.norm(free)), rel=1e-5)
    found, told = gradient(None if share is None else share * length)
    assert told == length, "the norm is reported as it was"
    assert np.allclose(found, free * (0.3 if share == 0.3 else 1), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("changes", "rates"),
    [
        ({}, [1.0] * 5),
        ({"schedule": "linear"}, [1.0, 0.8, 0.6, 0.4, 0.2]),
        ({"schedule": "cosine"}, [(1 + math.cos(math.pi * step / 5)) / 2 for step in range(5)]),
        ({"schedule": "linear", "warmup": 2}, [1 / 3, 2 / 3, 1.0, 2 / 3, 1 / 3]),
        ({"warmup": 1}, [0.5, 1.0, 1.0, 1.0, 1.0]),
    ],
    ids=str,
)
def test_schedules(model_folder: Path, changes: dict[str, Any], rates: list[float]) -> None:
    trained = run(model_folder, iterations=5, report_every=1, validate_every=100, **changes)
    seen = [report.learning_rate for report in trained.reports[1:]]
    assert seen == pytest.approx([2e-2 * rate for rate in rates], rel=1e-4)


def test_the_best_or_the_last_adapter_is_published_and_a_run_can_end_early(model_folder: Path) -> None:
    # So high a rate that validation soon gets worse.
    settings: dict[str, Any] = {"iterations": 5, "validate_every": 1, "learning_rate": 0.5}
    last, best = run(model_folder, keep="last", **settings), run(model_folder, keep="best", **settings)
    losses = [report.valid_loss for report in best.reports]
    assert best.step == losses.index(min(loss for loss in losses if loss is not None)) != last.step == 5
    assert not equal(arrays(last), arrays(best))
    early = run(model_folder, keep="best", early_stopping=2, **settings)
    assert early.reports[-1].iteration == early.step + 2 < 5
    assert equal(arrays(early), arrays(best)) == (early.step == best.step)


@pytest.mark.parametrize(("cuda", "most", "kept"), [(False, 10**6, False), (True, 10**6, True), (True, 100, False)])
def test_validation_batches_of_few_shapes_give_the_same_losses(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, most: int, *, cuda: bool, kept: bool
) -> None:
    monkeypatch.setattr("sqlora.train.validation.has_cuda", lambda: cuda)
    monkeypatch.setattr("sqlora.train.validation.KEPT_BYTES", most)
    upper = Upper(load_model(model_folder)[0], 0)
    upper.freeze()
    add_lora(upper, LORA, seed=1)
    stepper, rows, fetched = Stepper(upper, LORA, TRAIN), examples(11), []
    shapes: set[tuple[int, ...]] = set()

    def fetch(chosen: Sequence[int], starts: Sequence[int], length: int) -> np.ndarray:
        fetched.append(len(chosen))
        return token_fetcher(rows)(chosen, starts, length)

    class Seen:
        def losses(self, ready: Any) -> mx.array:
            shapes.add((*ready.inputs.shape, *ready.positions.shape))
            return stepper.losses(ready)

    def losses(*, few_shapes: bool) -> list[tuple[float, float]]:
        monkeypatch.setattr("sqlora.train.buckets.VALIDATION_TOKENS", 40)
        validator = Validator(Data(rows, fetch, (12, 20), 4), 2, ALONE, few_shapes=few_shapes)
        shapes.clear()
        fetched.clear()
        return [validator.losses(cast(Any, Seen())) for _ in range(2)]

    many = losses(few_shapes=False)
    assert len(shapes) > 2
    few = losses(few_shapes=True)
    assert len(shapes) == 2, "one a length"
    assert few[0] == pytest.approx(many[0], abs=1e-5)
    assert few[1] == few[0]
    assert sum(fetched) == (11 if kept else 22)


def test_a_validation_ends_on_every_rank_if_one_was_asked() -> None:
    class Told(Group):
        """The others ask as well, or not."""

        def __init__(self, others: float) -> None:
            super().__init__()
            self._others = others

        def totals(self, values: Sequence[float]) -> list[float]:
            return [*values[:-1], values[-1] + self._others]

    class Zero:
        def losses(self, ready: Any) -> mx.array:
            return mx.zeros(2)

    rows = examples()
    data = Data(rows, token_fetcher(rows), (16,), 4)
    for mine, others, ends in [(False, 0.0, False), (False, 1.0, True), (True, 0.0, True), (True, 1.0, True)]:
        validator = Validator(data, 2, Told(others))
        arguments: Any = (Zero(), lambda mine=mine: mine)
        if ends:
            with pytest.raises(Interrupted):
                validator.losses(*arguments)
        else:
            assert validator.losses(*arguments) == (0.0, 0.0)


@pytest.mark.parametrize("compiled", [False, True])
def test_when_losses_are_read_and_what_is_reported(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, *, compiled: bool
) -> None:
    monkeypatch.setattr("sqlora.train.run.compiles", lambda: compiled)
    events: list[str] = []
    took: list[int] = []
    step, check, told, plain = Stepper.step, Engine._check, Engine._report, Meter.took
    monkeypatch.setattr(Stepper, "step", lambda *one: (events.append("step"), step(*one))[1])
    monkeypatch.setattr(Engine, "_check", lambda engine, *one: (events.append("read"), check(engine, *one))[1])
    monkeypatch.setattr(Engine, "_report", lambda engine, *one: (events.append(f"row {one[0]}"), told(engine, *one))[1])
    monkeypatch.setattr(Meter, "took", lambda meter, *one: (took.append(one[0]), plain(meter, *one))[1])
    trained = run(model_folder, iterations=7, report_every=2, validate_every=6, checkpoint_every=3, schedule="linear")
    # A GPU has the next step to do while losses are read; a checkpoint and a validation need them at once.
    expected = (
        "row 0, step, step, step, read, row 2, read, step, step, read, row 4, step, read, row 6, step, read, row 7"
    )
    if not compiled:
        expected = expected.replace("step, step, step, read, row 2, read", "step, step, read, row 2, step, read")
        expected = expected.replace("step, step, read, row 4, step, read", "step, read, row 4, step, step, read")
    assert ", ".join(events) == expected
    assert [one.iteration for one in trained.reports] == [0, 2, 4, 6, 7]
    rates = [one.learning_rate for one in trained.reports[1:]]
    assert trained.reports[0].learning_rate is None
    assert rates == [pytest.approx(2e-2 * (7 - step) / 7, rel=1e-3) for step in (1, 3, 5, 6)]
    lengths = [len(example.tokens) for example in examples()]
    inputs, buckets = [one - 1 for one in lengths], lengths_of(examples())
    order = [batch_indices(step, inputs, buckets, TRAIN.batch_size, TRAIN.seed) for step in range(7)]
    assert sum(took) == sum(lengths[index] for batch in order for index in batch)
    assert all(one.tokens_per_second for one in trained.reports[1:])


def test_large_batches_have_buckets_of_their_own(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def noted(*arguments: Any, **options: Any) -> Any:
        seen.append(tuple(arguments[3]))
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "prepare_inputs", noted)
    with pytest.raises(KeyboardInterrupt):
        run(model_folder, batch_size=16, count=2)
    lengths = [len(example.tokens) - 1 for example in examples()]
    assert seen == [choose_lengths(lengths, batch_size=16)]
    assert seen != [choose_lengths(lengths)]


def test_the_bar_shows_loss_speed_memory_and_the_time_left(
    model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(model_folder, iterations=6, report_every=2)
    lines = [line for line in capsys.readouterr().err.split("\r") if line.startswith("train")]
    assert re.search(
        r"4/6 \[\d\d:\d\d<\d\d:\d\d, .*step/s, loss \d+\.\d{3}, \d+ tokens/s, \d\.\d\d GB\]", "\n".join(lines)
    )


@pytest.mark.parametrize("empty", ["train", "valid"])
def test_a_split_without_examples_is_an_error(model_folder: Path, empty: str) -> None:
    splits = {"train": examples(), "valid": examples()} | {empty: []}
    with pytest.raises(SqloraError, match=rf"the {empty} split: found no example.*split\.{empty}_size"):
        train_adapter(model_folder, splits["train"], splits["valid"], LORA, TRAIN, report=lambda _: None)


def test_more_layers_than_there_are_is_an_error(model_folder: Path) -> None:
    with pytest.raises(SqloraError, match=r"lora\.layers: 4.*at most 3"):
        run(model_folder, lora=dataclasses.replace(LORA, layers=4))


@pytest.mark.parametrize("damage", ["truncated", "gone"])
def test_a_damaged_model_is_named(model_folder: Path, tmp_path: Path, damage: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    file = next(copy.glob("*.safetensors"))
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1000])
    else:
        file.unlink()
    with pytest.raises(SqloraError, match=r"copy.*(does not load|no header)"):
        run(copy, iterations=1)


def test_a_loss_that_is_not_finite_stops_the_run(model_folder: Path) -> None:
    with pytest.raises(SqloraError, match=r"at iteration \d+, training examples \d"):
        run(model_folder, learning_rate=math.inf, validate_every=50)


def test_a_validation_that_is_not_finite_names_the_last_good_checkpoint(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, calls = Stepper.losses, iter(range(100))

    def third_is_wrong(self: Stepper, batch: Any) -> mx.array:
        return losses(self, batch) * (math.nan if next(calls) == 2 else 1)

    monkeypatch.setattr(Stepper, "losses", third_is_wrong)
    words = r"found a loss of nan after iteration 4 \(the last good checkpoint is step-00000003\)"
    with pytest.raises(SqloraError, match=words):
        run(model_folder, iterations=4, validate_every=2, checkpoint_every=1)


@pytest.mark.parametrize("room", [True, False])
def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], room: bool
) -> None:
    step, seal = Stepper.step, checkpoint._seal
    calls = iter(range(100))

    def fifth_is_wrong(self: Stepper, *what: Any) -> tuple[mx.array, mx.array]:
        loss, norm = step(self, *what)
        return (loss * math.nan if next(calls) == 4 else loss), norm

    def slow(partial: Path) -> None:
        time.sleep(0.3)  # longer than a step
        if not room and "step-00000004" in partial.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        seal(partial)

    monkeypatch.setattr(Stepper, "step", fifth_is_wrong)
    monkeypatch.setattr(checkpoint, "_seal", slow)
    good = "step-00000004" if room else "step-00000002"
    with pytest.raises(SqloraError, match=rf"nan.* at iteration 5, .*the last good checkpoint is {good}"):
        run(model_folder, iterations=8, checkpoint_every=2, report_every=1)
    assert ("warning: " in capsys.readouterr().err) is not room


def test_a_second_run_of_the_same_inputs_is_refused(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(model_folder, iterations=2)
    for name in ("LOCK_SECONDS", "QUIET_SECONDS"):
        monkeypatch.setattr(f"sqlora.train.inputs.{name}", 0.1)
    (folder,) = [path for path in (tmp_path / ".sqlora/train").iterdir() if path.is_dir()]
    with FileLock(folder / "lock"), pytest.raises(SqloraError, match="another training of the same inputs"):
        run(model_folder, iterations=2)
    assert "another training of the same inputs is there; waiting" in capsys.readouterr().out


def test_an_adapter_of_another_shape_is_an_error(model_folder: Path, tmp_path: Path) -> None:
    mx.save_safetensors(
        str(tmp_path / "adapters.safetensors"), {"model.layers.2.self_attn.q_proj.lora_a": mx.zeros((7, 4))}
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter_config(LORA)))
    model, _ = load_base(model_folder)
    with pytest.raises(SqloraError, match="does not fit the base model"):
        add_adapter(model, tmp_path)
