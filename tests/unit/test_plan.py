"""What training takes is known before: sizes exactly, MLX's memory within 10%, and what cannot fit is refused."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlora.mlx import mx, nn, tree_flatten

import numpy as np
import pytest
from contract import ROOT
from mlx_lm.models import llama
from train_params import train_params
from train_runs import batch_indices

from sqlora.errors import SqloraError
from sqlora.params.convert import ConvertParams
from sqlora.params.lora import LoraParams
from sqlora.params.train import MOST_BATCHES
from sqlora.plan import check, machine, memory, prediction
from sqlora.plan.check import expect
from sqlora.plan.command import run
from sqlora.plan.cost import measure, seconds
from sqlora.plan.machine import Machine, available_memory, outside_memory, this_machine
from sqlora.plan.memory import adapter_size, predict
from sqlora.plan.options import options
from sqlora.plan.prediction import ROOM, ROOM_AT_LEAST
from sqlora.plan.shape import KNOWN, Shape, known_shape, name_of, shape_of
from sqlora.plan.work import Load, Size, Work, assumed_sizes, sizes_of, work_of
from sqlora.tokenizer import Encoded
from sqlora.train import upper
from sqlora.train.buckets import choose_lengths
from sqlora.train.feed import TRANSFER_BYTES, Ready, transfer
from sqlora.train.lora import add_lora
from sqlora.train.loss import Batch
from sqlora.train.states import StateStore
from sqlora.train.step import Stepper
from sqlora.train.stores import ROOT as STATES
from sqlora.train.upper import Upper, fill_store

LORA = LoraParams(adapter="lora", layers=2, rank=8, scale=10.0, dropout=0.0, targets=("q_proj", "v_proj"))
TRAIN = train_params(
    batch_size=4,
    iterations=40,
    learning_rate=1e-3,
    validate_every=20,
    keep="best",
    seed=1,
)
CONFIG = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": 3000,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
ELSEWHERE = "cuda" if this_machine().device == "metal" else "metal"


@pytest.fixture(autouse=True)
def _limit() -> Iterator[None]:
    """A prediction sets MLX's memory limit, which the next test must not meet."""
    before = mx.set_memory_limit(0)
    mx.set_memory_limit(before)
    yield
    mx.set_memory_limit(before)


def model_of(config: dict[str, Any]) -> llama.Model:
    mx.random.seed(1)
    model = llama.Model(llama.ModelArgs.from_dict(config))
    if "quantization" in config:
        nn.quantize(model, group_size=config["quantization"]["group_size"], bits=config["quantization"]["bits"])
    return model


def weight_bytes(model: nn.Module) -> int:
    return sum(value.nbytes for _, value in tree_flatten(model.parameters()))


def active() -> int:
    """Bytes that MLX holds, less what earlier tests have left and nobody has collected yet."""
    gc.collect()
    mx.synchronize()
    mx.clear_cache()
    return mx.get_active_memory()


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"quantization": {"group_size": 64, "bits": 4}},
        {"quantization": {"group_size": 32, "bits": 8}, "tie_word_embeddings": True},
    ],
    ids=str,
)
def test_weights_are_counted_to_the_byte(changes: dict[str, Any]) -> None:
    config = CONFIG | changes
    assert shape_of(config).model_bytes == weight_bytes(model_of(config))


def test_a_matrix_whose_rows_are_no_whole_groups_stays_as_it_is() -> None:
    shape = shape_of(CONFIG).converted("bfloat16", 4, 64)
    assert shape.matrix_bytes(10, 96) == 10 * 96 * 2
    assert shape.matrix_bytes(10, 128) == 10 * 128 // 2 + 2 * 10 * 2 * 2


def test_known_shapes() -> None:
    assert known_shape("mistral-7b").converted("bfloat16", None, 64).model_bytes == 7_241_732_096 * 2
    demo = json.loads((ROOT / "demo" / "base.json").read_text())
    assert known_shape("demo").model_bytes // 4 == pytest.approx(demo["parameters"], rel=1e-3)
    assert name_of(("https://a.example/x.tar", "https://models.example/mistral-7B-v0.1.tar")) == "mistral-7b"
    assert name_of("hf://HuggingFaceTB/SmolLM2-135M@0123") == "smollm2-135m"
    assert name_of("/somewhere/else.tar") is None
    with pytest.raises(SqloraError, match="mistral-8b; expected one of demo, mistral-7b"):
        known_shape("mistral-8b")
    assert set(KNOWN) >= {"demo", "mistral-7b"}


def test_a_runs_batches_are_known() -> None:
    rng = np.random.default_rng(1)
    rows = [Size(int(length), int(length) // 4) for length in rng.integers(20, 90, 50)]
    work = work_of(rows, rows[:10], dataclasses.replace(TRAIN, iterations=13))
    lengths = [row.length for row in rows]
    buckets = choose_lengths(lengths)
    chosen = [batch_indices(step, lengths, buckets, 4, TRAIN.seed) for step in range(13)]
    assert {load.rows for load in work.train} == {len(one) for one in chosen} == {4, 2}
    assert max(load.length for load in work.train) == max(lengths)
    assert {load.counted for load in work.train} == {sum(rows[index].answer for index in one) for one in chosen}
    assert sum(load.counted for load in work.valid) == sum(lengths[:10])
    assert work.state_tokens == sum(lengths) + sum(lengths[:10])
    assert sum(count for _, count in work.states) == 60
    every = work_of(rows, rows[:10], dataclasses.replace(TRAIN, iterations=13, loss="all"))
    assert {load.counted for load in every.train} == {sum(lengths[index] for index in one) for one in chosen}


def test_a_compiled_runs_batches_are_filled_up_to_one_shape_a_length() -> None:
    rng = np.random.default_rng(1)
    rows = [Size(int(length), int(length) // 4) for length in rng.integers(20, 90, 50)]
    plain, filled = (work_of(rows, rows[:10], TRAIN, compiled=compiled) for compiled in (False, True))
    assert len({load.length for load in filled.train}) == len(filled.train) < len(plain.train)
    assert {load.rows for load in filled.train} == {4}
    for load in filled.train:
        assert load.counted >= max(one.counted for one in plain.train if one.length == load.length)


def test_several_ranks_share_the_batches() -> None:
    rows = [Size(size.length, size.answer) for size in assumed_sizes(60)]
    params = dataclasses.replace(TRAIN, batch_size=4, gradient_accumulation=2)
    alone, shared = (work_of(rows, rows[:20], params, ranks=ranks) for ranks in (1, 4))
    assert max(load.rows for load in alone.train) == 4
    assert max(load.rows for load in shared.train) == 2
    assert shared.valid_tokens < alone.valid_tokens


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "lora", "train", "counted"),
    [
        ({}, {}, {}, 120),
        ({}, {"layers": 4}, {}, 120),
        ({}, {"layers": 4}, {"gradient_checkpointing": True}, 120),
        ({}, {"targets": ("q_proj", "o_proj", "up_proj", "down_proj")}, {}, 120),
        ({}, {"dropout": 0.1}, {}, 120),
        ({"quantization": {"group_size": 64, "bits": 4}}, {"layers": 1}, {}, 400),
        ({"quantization": {"group_size": 64, "bits": 4}}, {"layers": 4}, {}, 120),
        ({"tie_word_embeddings": True}, {}, {}, 600),
        ({}, {"layers": 3}, {"states_gb": 0.0}, 120),
        ({}, {"adapter": "dora", "layers": 4}, {}, 120),
        ({}, {"adapter": "dora", "targets": ("q_proj", "o_proj", "up_proj", "down_proj")}, {}, 120),
        ({}, {"adapter": "dora", "layers": 4}, {"gradient_checkpointing": True}, 120),
        ({"quantization": {"group_size": 64, "bits": 4}}, {"adapter": "dora", "layers": 4}, {}, 120),
        ({"attention_bias": True}, {"layers": 4}, {}, 120),
    ],
    ids=str,
)
def test_the_memory_of_steps_and_validation_is_predicted(
    config: dict[str, Any], lora: dict[str, Any], train: dict[str, Any], counted: int
) -> None:
    config, adapter = CONFIG | config, dataclasses.replace(LORA, **lora)
    params, rows, length = dataclasses.replace(TRAIN, **train), 4, 160
    frozen = config["num_hidden_layers"] - adapter.layers if params.states_gb else 0
    params = dataclasses.replace(params, iterations=1)  # one step's inputs are transferred, as below
    load, everything = Load(rows, length, counted), Load(rows, length, rows * length)
    tokens = rows * length
    work = Work(
        train=(load,),
        valid=(everything,),
        mean_tokens=tokens,
        step_tokens=tokens,
        even_tokens=tokens,
        valid_tokens=tokens,
        state_tokens=0,
        states=((length, rows),),
    )
    prediction = predict(shape_of(config), adapter, params, work, device="cpu")
    expected = max(sum(prediction.phases[phase].values()) for phase in ("training", "validation"))
    model = model_of(config)
    before = active()
    upper = Upper(model, frozen)
    del model
    upper.freeze()
    upper.load()
    upper.checkpointing = params.gradient_checkpointing
    add_lora(upper, adapter, 1)
    stepper = Stepper(upper, adapter, params)
    inputs: np.ndarray = np.random.default_rng(1).standard_normal((rows, length, 256)).astype(np.float32)
    if not frozen:
        inputs = np.ones((rows, length), dtype=np.int32)

    def batch(load: Load) -> Ready:
        places = np.arange(load.counted, dtype=np.int32)
        ones = np.ones(load.counted, dtype=np.float32)
        return transfer([Batch(inputs, places, places, ones, ones, rows * length)])[0]

    best = stepper.adapter()
    step = batch(load)
    mx.eval(stepper.step([step]), best)
    mx.set_memory_limit(1)  # nothing is issued ahead, so what is measured is what lives
    mx.reset_peak_memory()
    mx.eval(stepper.step([step]))
    mx.eval(stepper.losses(batch(everything)))
    assert mx.get_peak_memory() - before == pytest.approx(expected, rel=0.1)


def test_a_large_batch_is_planned_as_it_is_trained() -> None:
    sizes = assumed_sizes(1000)
    lengths, params = [one.length for one in sizes], dataclasses.replace(TRAIN, batch_size=32, iterations=64)
    work = work_of(sizes, sizes[:20], params)
    buckets = choose_lengths(lengths, batch_size=32)
    assert {load.length for load in work.train} == set(buckets) != set(choose_lengths(lengths))


@pytest.mark.parametrize("phase", ["training", "validation", "frozen layers"])
def test_a_cpu_has_the_plain_weights_of_quantized_products(phase: str) -> None:
    """A wide model and few tokens, so that they are most of what is measured."""
    plain = CONFIG | {"hidden_size": 512, "head_dim": 128, "intermediate_size": 2048, "vocab_size": 256}
    config = plain | {"quantization": {"group_size": 64, "bits": 4}}
    work = Work(
        train=(Load(1, 16, 8),),
        valid=(Load(1, 16, 16),),
        mean_tokens=16,
        step_tokens=16,
        even_tokens=16,
        valid_tokens=16,
        state_tokens=16,
        states=((16, 1),),
    )
    name = "the batch at work" if phase == "frozen layers" else "the layer at work"
    quantized, without = (
        predict(shape_of(one), LORA, TRAIN, work, device="cpu").phases[phase][name] for one in (config, plain)
    )
    model = model_of(config)
    layer = model.model.layers[0].mlp
    mx.eval(model.parameters())
    before = active()
    mx.set_memory_limit(1)
    mx.reset_peak_memory()
    mx.eval(layer(mx.ones((16, 512))))
    measured = mx.get_peak_memory() - before
    assert measured > 8 * 512 * 2048, "both of gate's and up's, or what one of them is unpacked from"
    assert quantized - without == pytest.approx(measured, rel=0.4), "3 or 4 matrices, as it comes"


def test_the_memory_of_the_frozen_pass_is_predicted(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    model = model_of(CONFIG)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    del model
    rng = np.random.default_rng(1)
    examples = [Encoded(tuple(rng.integers(3, 3000, 150).tolist()), 100) for _ in range(60)]
    sizes = sizes_of(examples)
    work = work_of(sizes[:50], sizes[50:], TRAIN)
    prediction = predict(shape_of(CONFIG), LORA, TRAIN, work, device="cpu")
    before = active()
    mx.set_memory_limit(1)
    mx.reset_peak_memory()
    store = StateStore(tmp_path / "states", 256, "float32")
    fill_store(store, folder, 2, [example.tokens[:-1] for example in examples], (149,))
    measured = mx.get_peak_memory() - before
    assert measured == pytest.approx(sum(prediction.phases["frozen layers"].values()), rel=0.1)


def test_what_counts_as_the_peak_depends_on_the_device() -> None:
    shape, sizes = known_shape("mistral-7b").converted("bfloat16", None, 64), assumed_sizes(1000)
    lora = dataclasses.replace(LORA, layers=16)
    work = work_of(sizes, assumed_sizes(100), TRAIN)
    found = {
        device: predict(shape, lora, TRAIN, work, device=device, outside=10**9 if device == "cpu" else 0)
        for device in ("cpu", "cuda", "metal")
    }
    gpu, cpu = found["cuda"], found["cpu"]
    assert gpu.limit == int(gpu.live + max(gpu.live * ROOM["cuda"], ROOM_AT_LEAST["cuda"]))
    assert gpu.peak == pytest.approx(gpu.live * 1.2), "MLX goes a little above its limit"
    quantized = known_shape("mistral-7b").converted("bfloat16", 4, 64)
    small = predict(quantized, lora, TRAIN, work, device="cuda")
    # A room that is no share is not used up.
    assert small.limit == small.live + ROOM_AT_LEAST["cuda"]
    assert small.live + 0.7 * ROOM_AT_LEAST["cuda"] < small.peak < small.limit
    # 16 layers of 2 * 218 million parameters, and the output matrix, are 7.2 GB of it.
    assert 8e9 < found["metal"].peak < gpu.peak < 11.5e9
    assert cpu.peak > cpu.live + 10**9
    assert "training" in str(gpu)


def test_what_a_cuda_device_has_beside_a_macs() -> None:
    shape, sizes = known_shape("mistral-7b").converted("bfloat16", None, 64), assumed_sizes(1000)
    lora = dataclasses.replace(LORA, layers=16, targets=("q_proj", "v_proj", "down_proj"))
    work = work_of(sizes, assumed_sizes(100), TRAIN, compiled=True)
    cuda, metal = (predict(shape, lora, TRAIN, work, device=device).phases["training"] for device in ("cuda", "metal"))
    step = int(work.step_tokens * 4096 * 2)
    assert cuda["inputs of the next steps"] == 3 * 16 * step, "of the steps before and behind them as well"
    assert metal["inputs of the next steps"] == 32_000_000 // int(work.even_tokens * 4096 * 2) * step
    assert cuda["inputs of validations"] == work.valid_tokens * 4096 * 2
    factors = 16 * (16 * (4096 + 6144) + 8 * (14336 + 4096))  # q and v are two of rank 8 with k's columns between them
    assert cuda["places in the adapter"] == 4 * (factors + adapter_size(shape, lora))
    assert metal["places in the adapter"] == 0
    large = predict(shape, lora, TRAIN, work_of(sizes, assumed_sizes(1000), TRAIN), device="cuda")
    assert large.phases["validation"]["inputs of the validation"] == TRANSFER_BYTES


def test_attention_kernels_have_no_weights_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, lora = known_shape("mistral-7b").converted("bfloat16", None, 64), dataclasses.replace(LORA, layers=16)
    weights = 32 * 200**2  # numbers a row

    def kept(rows: int = 4, shape: Shape = shape, lora: LoraParams = lora, device: str = "cuda") -> float:
        """Numbers, without those that are there in any case."""
        width = shape.queries + 2 * shape.keys + shape.hidden + 2 * shape.inner + lora.rank * len(lora.targets)
        return (
            memory._kept(shape, lora, Load(rows, 200, 1), device, rows * 200)[2] / shape.itemsize - rows * 200 * width
        )

    assert kept() == 4 * 200 * 4096, "what comes out of it"
    assert kept(rows=60) == 60 * 200 * 4096
    with monkeypatch.context() as patch:
        patch.setattr(memory, "attends", lambda: False)
        assert kept() == 4 * weights, "an older device"
    assert kept(device="metal") == 4 * weights
    assert kept(shape=known_shape("mistral-7b").converted("float32", None, 64)) == 4 * weights
    assert kept(shape=dataclasses.replace(shape, heads=16)) == 4 * weights / 2, "heads of 256"
    assert kept(lora=dataclasses.replace(lora, dropout=0.1)) == 4 * weights
    few = 100 * (4096 + 2 * 14336)  # of those that go on behind the attention
    assert memory._kept(shape, lora, Load(4, 200, 1), "cuda", 100)[2] // 2 == few + 800 * (2 * 4096 + 2 * 1024 + 2 * 8)
    for rows, parts in ((4, 4), (10, 2), (60, 1)):
        cuda, metal = (
            memory._attention_back(shape, lora, Load(rows, 200, 1), device, rows * 200) // 2
            for device in ("cuda", "metal")
        )
        # d_key and d_value in parts, where plain attention has d_value and a copy of d_mixed beside the weights'.
        assert cuda - metal == rows * 200 * (2 * 1024 * parts - 1024) - 2 * rows * weights
    filled = memory._places(shape, dataclasses.replace(lora, rank=5, targets=("q_proj", "v_proj")))
    small = dataclasses.replace(lora, rank=5, targets=("q_proj", "v_proj"))
    assert filled == 4 * (16 * 16 * (4096 + 6144) + adapter_size(shape, small)), "rows of two of rank 5, and of zeros"


def test_examples_one_after_another_take_memory_by_their_tokens() -> None:
    """However long a row is: no attention's weights, and no mask."""
    shape, lora = known_shape("mistral-7b").converted("bfloat16", None, 64), dataclasses.replace(LORA, layers=16)

    def taken(tokens: int, *, packed: bool = True) -> list[int]:
        load = Load(1, tokens, 1, packed)
        kept = memory._kept(shape, lora, load, "cuda", tokens)
        return [
            *kept,
            memory._attention_back(shape, lora, load, "cuda", tokens),
            memory._mlp_back(shape, lora, load, "cuda", tokens),
        ]

    for one, other in zip(taken(4096), taken(8192), strict=True):
        assert other == 2 * one
    assert taken(400)[2] == taken(400, packed=False)[2], "as one row of an example"
    assert taken(600)[2] > taken(600, packed=False)[2], "of which MLX's attention keeps less"
    assert memory._mask(shape, Load(1, 400, 1, packed=True)) == 0


def test_a_cuda_run_is_planned_as_it_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bool]] = []
    plain = work_of
    for module in ("check", "options"):
        monkeypatch.setattr(
            f"sqlora.plan.{module}.work_of",
            lambda *given, module=module, **named: (seen.append((module, named["packed"])), plain(*given, **named))[1],
        )
    sizes = assumed_sizes(60)
    shape = known_shape("mistral-7b")
    for device, packed in (("cuda", True), ("metal", False)):
        give(monkeypatch, 1000, device)
        seen.clear()
        expect(mistral(), encoded(8), encoded(2), LORA, TRAIN)
        machine = Machine(device, 10**12, "a machine")
        options(shape, ConvertParams("bfloat16", None, 64), LORA, TRAIN, (sizes, sizes[:9]), machine, None, 0, 1e12)
        assert set(seen) == {("check", packed), ("options", packed)}


def test_fewer_tokens_in_the_largest_batch_take_less_memory() -> None:
    shape, sizes = known_shape("mistral-7b").converted("bfloat16", None, 64), assumed_sizes(1000)
    lora, params = dataclasses.replace(LORA, layers=16), dataclasses.replace(TRAIN, batch_size=32, iterations=100)
    packed, padded = (
        predict(shape, lora, params, work_of(sizes, sizes[:100], params, compiled=True, packed=one), device="cuda")
        for one in (True, False)
    )
    assert packed.peak < 0.75 * padded.peak


def test_validation_batches_of_a_length_have_one_shape_on_a_gpu() -> None:
    sizes = assumed_sizes(100)
    shapes = {
        compiled: {
            (load.length, load.rows, load.counted) for load in work_of(sizes, sizes, TRAIN, compiled=compiled).valid
        }
        for compiled in (False, True)
    }
    assert len(shapes[True]) == len({length for length, *_ in shapes[True]}) < len(shapes[False])


def test_memory_grows_with_what_the_readme_says() -> None:
    shape, sizes = known_shape("mistral-7b").converted("bfloat16", None, 64), assumed_sizes(200)
    lora = dataclasses.replace(LORA, layers=8)

    def peak(shape: Shape = shape, lora: LoraParams = lora, **changes: Any) -> int:
        params = dataclasses.replace(TRAIN, **changes)
        return predict(shape, lora, params, work_of(sizes, sizes[:20], params), device="cuda").peak

    assert peak(batch_size=8) > peak() > peak(batch_size=1)
    assert peak(lora=dataclasses.replace(lora, layers=16)) > peak() > peak(shape.converted("bfloat16", 4, 64))
    assert peak(gradient_checkpointing=True) < peak() < peak(loss="all") < peak(states_gb=0.0)


# --- the machine ----------------------------------------------------------------------------------------------------


def test_this_machine_has_some_memory() -> None:
    found = this_machine()
    assert found.device in ("cpu", "cuda", "metal")
    assert found.memory > 10**8
    assert 10**7 < outside_memory() < 10**11


@pytest.mark.parametrize(
    ("line", "folder", "files"),
    [
        ("0::/box", "box", ("memory.max", "memory.current")),
        ("0::/elsewhere", "", ("memory.max", "memory.current")),
        ("4:memory:/box", "memory/box", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
    ],
)
def test_a_containers_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, folder: str, files: tuple[str, str]
) -> None:
    group, own = tmp_path / "groups" / folder, tmp_path / "own"
    group.mkdir(parents=True)
    own.write_text(f"3:cpu:/\n{line}\n")
    (group / files[0]).write_text("3000\n")
    (group / files[1]).write_text("1200\n")
    (group / "memory.stat").write_text("anon 900\ninactive_file 200\nactive_file 100\n")
    assert list(machine._groups(tmp_path / "groups", own)) == [3000 - (1200 - 300)]
    (group / files[0]).write_text("max\n")
    assert list(machine._groups(tmp_path / "groups", own)) == []
    monkeypatch.setattr(machine, "_groups", lambda: iter([1234]))
    assert available_memory() == 1234


# --- before training ------------------------------------------------------------------------------------------------


def encoded(count: int) -> list[Encoded]:
    return [Encoded(tuple(range(size.length + 1)), size.length + 1 - size.answer) for size in assumed_sizes(count)]


def mistral() -> dict[str, Any]:
    return KNOWN["mistral-7b"] | {"torch_dtype": "bfloat16"}


def give(monkeypatch: pytest.MonkeyPatch, gigabytes: float, device: str = "metal") -> None:
    monkeypatch.setattr(check, "this_machine", lambda: Machine(device, int(gigabytes * 1e9), "a small Mac"))


def test_what_cannot_fit_is_refused_and_what_is_named_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    lora = dataclasses.replace(LORA, layers=16)
    train, valid = encoded(200), encoded(20)
    give(monkeypatch, 8.4)
    with pytest.raises(SqloraError, match=r"need 9\.\d+ GB of memory.*at most 8\.40 GB, what a small Mac has") as error:
        expect(mistral(), train, valid, lora, TRAIN)
    assert "Set train.batch_size 1, train.gradient_accumulation 4 (8." in error.value.next_step
    named = dataclasses.replace(TRAIN, batch_size=1, gradient_accumulation=4)
    assert expect(mistral(), train, valid, lora, named).peak < 8.4e9
    give(monkeypatch, 5)
    with pytest.raises(SqloraError, match=r"train\.batch_size 1, .*lora\.layers 8 \(4\.\d+ GB\)"):
        expect(mistral(), train, valid, lora, TRAIN)
    give(monkeypatch, 17)
    many = dataclasses.replace(TRAIN, batch_size=4, gradient_accumulation=MOST_BATCHES // 4 + 1)
    with pytest.raises(SqloraError, match=r"Set train\.batch_size 2, train\.gradient_accumulation 5002") as error:
        expect(mistral(), train, valid, lora, many)
    assert "1000" not in error.value.next_step, "train.gradient_accumulation has a limit"
    give(monkeypatch, 1)
    with pytest.raises(SqloraError, match=r"quantized base model \(convert\.quantize 4\).*train\.force: true"):
        expect(mistral(), train, valid, lora, TRAIN)


def test_force_trains_all_the_same_and_mlx_is_held_to_the_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, 1)
    found = expect(mistral(), encoded(50), encoded(10), LORA, dataclasses.replace(TRAIN, force=True))
    assert found.peak > 1e9
    assert mx.set_memory_limit(0) == found.limit
    give(monkeypatch, (found.peak + 1) / 1e9)
    assert found.limit > found.peak + 1
    expect(mistral(), encoded(50), encoded(10), LORA, TRAIN)
    assert mx.set_memory_limit(0) == pytest.approx(found.peak, abs=2), "what there is"


def test_force_goes_on_from_the_same_checkpoints(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sqlora.train.run import train_adapter

    monkeypatch.chdir(tmp_path)
    rows = [Encoded((1, 5, 6, 7, 2), 3), Encoded((1, 8, 9, 2), 2)]
    for force in (False, True):
        params = dataclasses.replace(TRAIN, iterations=2, force=force)
        train_adapter(model_folder, rows, rows, LORA, params, report=lambda _: None)
    assert "going on from step-00000002" in capsys.readouterr().out


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "profiles" / "mistral-7b-1k.yaml", tmp_path / "params.yaml")
    return tmp_path


def plan(root: Path, **changes: Any) -> int:
    options: dict[str, Any] = {
        "model": None,
        "shape": None,
        "params": None,
        "memory_gb": 21.5,
        "device": "metal",
        "as_json": False,
    }
    return run(root, **options | changes)


def test_the_table_without_artifacts(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(project) == 0
    text = capsys.readouterr().out
    assert all(len(line) <= 100 for line in text.splitlines())
    assert "assumed: 1,000 and 100 examples" in text
    rows = [line.split() for line in text.splitlines() if line.split()[-1:] and line.split()[-1][:1].isdigit()]
    (current,) = [row for row in rows if row[0] == ">"]
    assert current[1:4] == ["4", "16", "1,703,936"]
    assert len([row for row in rows if row[0] in (">", "4", "2", "1")]) == 9
    assert "!" not in "".join(line for line in text.splitlines() if line.startswith(">"))


def test_settings_that_do_not_fit_are_marked(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(project, memory_gb=5.0) == 1
    text = capsys.readouterr().out
    assert ">9." in text
    assert "training will refuse them" in text
    (line,) = [line for line in text.splitlines() if line.startswith(">  ")]
    assert line.count("!") == 2  # plain, with checkpointing or not; 4 bits fit


def test_the_plan_as_json(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(project, as_json=True) == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record["options"]) == 9 * 4
    (current,) = [option for option in record["options"] if option["current"]]
    assert (current["batch_size"], current["layers"], current["quantize"]) == (4, 16, None)
    assert current["trainable_parameters"] == 1_703_936
    assert current["disk_gb"]["model"] == pytest.approx(14.48, abs=0.01)
    assert current["disk_gb"]["states"] == pytest.approx(1100 * 95 * 4096 * 2 / 1e9, rel=0.05)
    total = sum(current["phases_gb"][current["largest_phase"]].values())
    assert current["peak_memory_gb"] == pytest.approx(total * 1.05, rel=0.01)
    assert all(option["fits"] == (option["peak_memory_gb"] <= 21.5) for option in record["options"])


def test_states_without_room_are_said(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(re.sub(r"states_gb: \S+", "states_gb: 0.5", text))
    assert plan(project) == 1
    output = capsys.readouterr().out
    assert re.search(r"The frozen layers' states take 0\.8\d+ GB, more than train\.states_gb", output)
    assert " 0.97 GB !" in output
    assert ">9." in output
    assert "do not fit this machine" not in output


def test_the_memory_of_one_of_several_processes(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def peak() -> float:
        plan(project, device="cuda", memory_gb=80.0, as_json=True)
        return float(
            next(one["peak_memory_gb"] for one in json.loads(capsys.readouterr().out)["options"] if one["current"])
        )

    alone = peak()
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(re.sub(r"workers: 1", "workers: 4", text))
    assert peak() < alone - 0.5
    plan(project)
    assert "each of 4 processes" in capsys.readouterr().out


def test_here_the_disk_counts_and_what_states_have_of_it_already(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (project / "params.yaml").read_text().replace("layers: 16", "layers: 4")
    (project / "params.yaml").write_text(text)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 0, 10**6))
    here = {"shape": "demo", "memory_gb": None, "device": None}
    assert plan(project, **here) == 1
    assert "the disk has room for: training will refuse them" in capsys.readouterr().out
    (project / STATES / "other").mkdir(parents=True)
    with open(project / STATES / "other/states-0.bin", "wb") as file:
        file.truncate(10**9)
    assert plan(project, **here) == 0


def test_ranks_share_a_cpus_memory(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (project / "params.yaml").read_text().replace("workers: 1", "workers: 4")
    (project / "params.yaml").write_text(text)
    for device, each in (("cpu", 20.0), ("metal", 80.0)):
        plan(project, device=device, memory_gb=80.0, as_json=True)
        assert json.loads(capsys.readouterr().out)["machine"]["memory_gb"] == each


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"memory_gb": math.nan}, "--memory: found nan"),
        ({"memory_gb": -5.0}, "--memory: found -5"),
        ({"memory_gb": None, "device": ELSEWHERE}, f"--device {ELSEWHERE}: found no --memory"),
        ({"model": Path("x"), "shape": "demo"}, "found both --model and --shape"),
        ({"model": Path("nowhere")}, r"nowhere/config\.json: found no such file.*Name another"),
    ],
)
def test_a_machine_or_model_that_is_not_clear(project: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(SqloraError, match=words):
        plan(project, **options)


@pytest.mark.parametrize(("content", "words"), [("[]", "no object"), ('{"torch_dtype": "int8"}', "int8")])
def test_a_config_that_no_conversion_wrote(
    project: Path, model_folder: Path, tmp_path: Path, content: str, words: str
) -> None:
    folder = tmp_path / "another"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    change = json.loads(content)
    (folder / "config.json").write_text(json.dumps(config | change if change else change))
    with pytest.raises(SqloraError, match=words):
        plan(project, model=folder)


def test_a_plan_needs_a_shape(project: Path) -> None:
    with pytest.raises(SqloraError, match="expected one of demo"):
        plan(project, shape="gpt-2")
    text = (project / "params.yaml").read_text()
    start, end = text.index("  source:\n"), text.index("  checksum: md5")
    (project / "params.yaml").write_text(text[:start] + "  source: /my/model.tar\n" + text[end:])
    with pytest.raises(SqloraError, match=r"whose shape is not known, and no artifacts/model.*--shape"):
        plan(project)
    assert plan(project, shape="mistral-7b") == 0
    with pytest.raises(SqloraError, match=r"lora\.layers: 16; expected at most 8"):
        plan(project, shape="demo")


def test_a_converted_model_is_planned_for(
    project: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (project / "params.yaml").read_text().replace("layers: 16", "layers: 2")
    (project / "params.yaml").write_text(text)
    assert plan(project, model=model_folder) == 0
    assert str(model_folder) in capsys.readouterr().out


def test_time_is_estimated_from_a_measurement() -> None:
    shape, lora = known_shape("demo"), LORA
    sizes = assumed_sizes(40)
    work = work_of(sizes, sizes[:8], TRAIN)
    speed = measure(shape, lora, TRAIN, work)
    assert min(speed.flops, speed.layer) > 0
    short = seconds(shape, lora, TRAIN, work, speed)
    longer = seconds(shape, lora, dataclasses.replace(TRAIN, iterations=400), work, speed)
    assert 0 < short < longer


def test_states_that_are_written_later_fit_into_the_room_of_any_run() -> None:
    """They lie beside the trained weights, as that room does, so the prediction need not know them."""
    assert prediction._REACHED_AT_LEAST["cuda"] * prediction.ROOM_AT_LEAST["cuda"] >= upper._WRITTEN_LATER
