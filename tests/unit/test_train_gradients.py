"""Loss and gradients of the trained layers: those of the whole model, with merged products and own kernels too."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from sqlora.mlx import mx, nn, tree_flatten

import cuda_on_cpu
import numpy as np
import pytest
from mlx_lm.models import llama
from mlx_lm.utils import load_model
from tiny_llama import VOCABULARY, write_model
from train_runs import LORA, batch_of, examples, mean_loss, read_rows, without_compiler

from sqlora.model import load_base
from sqlora.params.lora import LoraParams
from sqlora.train import fused as fused_module
from sqlora.train import layer
from sqlora.train.checkpoint import flatten
from sqlora.train.feed import transfer
from sqlora.train.gradients import Automatic, Written, picks_early
from sqlora.train.layout import Layout
from sqlora.train.lora import add_lora
from sqlora.train.states import StateStore, key_of
from sqlora.train.upper import Upper, fill_store

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.mark.parametrize("kind", ["completion", "all"])
def test_the_loss_is_the_mean_over_counted_tokens_whatever_the_padding(model_folder: Path, kind: str) -> None:
    model, _ = load_base(model_folder)
    rows = examples()
    total = count = 0.0
    for row in rows:  # one by one, without padding, from the whole model's logits
        logits = model(mx.array([row.tokens]))[0]
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        for place in range(row.prompt_tokens if kind == "completion" else 1, len(row.tokens)):
            total -= logprobs[place - 1, row.tokens[place]].item()
            count += 1
    upper = Upper(load_model(model_folder)[0], 0)
    longest = max(len(row.tokens) for row in rows)
    for length in (longest - 1, longest + 5):
        batch = batch_of(rows, length, kind)
        assert batch.inputs.shape == (6, length)
        assert batch.counted == count
        assert batch.real_tokens == sum(len(row.tokens) for row in rows)
        assert batch.answers.sum() == sum(len(row.tokens) - row.prompt_tokens for row in rows)
        assert mean_loss(upper, batch) == pytest.approx(total / count, abs=1e-5)


TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def fused(upper: Upper, layout: Layout, lora: LoraParams, *, compiled: bool = False) -> Written:
    return Written(upper, layout, lora, compiled=compiled, fused=True)


@pytest.mark.parametrize(
    ("kind", "adapter"), [(Written, "lora"), (fused, "lora"), (Automatic, "lora"), (Automatic, "dora")]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("counted", ["completion", "all"])
@pytest.mark.parametrize(
    ("layers", "targets"), [(1, TARGETS[:1]), (2, TARGETS), (3, ("q_proj", "v_proj", "down_proj"))]
)
def test_loss_and_gradients_are_those_of_the_whole_model(
    source_folder: Path,
    tmp_path: Path,
    dtype: str,
    layers: int,
    targets: tuple[str, ...],
    kind: Any,
    adapter: str,
    counted: str,
) -> None:
    from sqlora.convert.model import convert_model

    folder = tmp_path / "model"
    folder.mkdir()
    convert_model(source_folder, folder, dtype=dtype)
    lora = dataclasses.replace(LORA, adapter=adapter, layers=layers, targets=targets)
    rows, length = examples(), 16
    whole, config = load_base(folder)
    add_lora(whole, lora, seed=1)
    lively(whole)
    frozen = len(whole.layers) - layers
    upper = Upper(load_model(folder, lazy=True)[0], frozen)
    upper.freeze()
    upper.load()
    add_lora(upper, lora, seed=1)
    lively(upper)
    store = StateStore(tmp_path / "states", config["hidden_size"], "float32" if dtype == "float32" else "uint16")
    inputs = [row.tokens[:-1] for row in rows]
    if frozen:
        assert fill_store(store, folder, frozen, inputs, (8, 11, 16)) == len(rows)
        assert fill_store(store, folder, frozen, inputs, (8, 11, 16)) == 0
    batch = batch_of(rows, length, counted)
    assert picks_early(len(batch.positions), 6 * length) == (counted == "completion")
    ids = mx.array(batch.inputs)

    def loss_of_whole(model: nn.Module) -> mx.array:
        hidden = model.model(ids)
        logits = model.lm_head(hidden.reshape(-1, hidden.shape[-1])[mx.array(batch.positions)]).astype(mx.float32)
        return nn.losses.cross_entropy(logits, mx.array(batch.targets)).mean()

    if frozen:
        batch = dataclasses.replace(batch, inputs=read_rows(store, [key_of(one) for one in inputs], length))
        assert batch.inputs.ndim == 3
    one, expected = loss_and_gradients(whole, loss_of_whole)
    assert len(expected) == layers * len(lora.targets) * (3 if adapter == "dora" else 2)
    layout = Layout(flatten(upper.adapter()))
    model = kind(upper, layout) if kind is Automatic else kind(upper, layout, lora)
    other, vector = model.gradients(layout.join(flatten(upper.adapter())), transfer([batch])[0])
    found = {in_whole(name, frozen): value for name, value in layout.split(vector / batch.counted).items()}
    assert found.keys() == expected.keys()
    assert min(mx.abs(value).max().item() for value in expected.values()) > 1e-5
    if dtype == "float32":
        assert other.item() / batch.counted == pytest.approx(one, abs=1e-5)
        assert distance(found, expected) < 1e-5
    else:
        assert other.item() / batch.counted == pytest.approx(one, abs=1e-2)
        # Half precision alone moves gradients by some percent, with or without a split, so both are held against the
        # same weights in float32.
        whole.set_dtype(mx.float32)
        truth, exact = loss_and_gradients(whole, loss_of_whole)
        assert other.item() / batch.counted == pytest.approx(truth, abs=1e-2)
        assert distance(found, exact) < max(1e-2, 1.3 * distance(expected, exact))


@pytest.mark.parametrize(("kind", "adapter"), [(Written, "lora"), (fused, "lora"), (Automatic, "dora")])
@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-5), ("bfloat16", 1e-2)])
@pytest.mark.parametrize(("layers", "targets"), [(1, TARGETS[:1]), (2, TARGETS)])
def test_the_split_changes_neither_loss_nor_gradients(
    source_folder: Path,
    tmp_path: Path,
    dtype: str,
    most: float,
    layers: int,
    targets: tuple[str, ...],
    kind: Any,
    adapter: str,
) -> None:
    """Against the unsplit model by the same code, from tokens. The frozen layers of a run with DoRA are not those of
    mlx-lm, which compute the unsplit model there: in half precision these two round differently.
    """
    from sqlora.convert.model import convert_model

    folder = tmp_path / "model"
    folder.mkdir()
    convert_model(source_folder, folder, dtype=dtype)
    lora = dataclasses.replace(LORA, adapter=adapter, layers=layers, targets=targets)
    rows, length, found = examples(), 16, []
    inputs = [row.tokens[:-1] for row in rows]
    for frozen in (0, 3 - layers):
        base, config = load_model(folder, lazy=True)
        upper = Upper(base, frozen)
        upper.freeze()
        upper.load()
        add_lora(upper, lora, seed=1)
        lively(upper)
        batch = batch_of(rows, length, "all")
        if frozen:
            store = StateStore(tmp_path, config["hidden_size"], "float32" if dtype == "float32" else "uint16")
            fill_store(store, folder, frozen, inputs, (8, 11, 16))
            batch = dataclasses.replace(batch, inputs=read_rows(store, [key_of(one) for one in inputs], length))
        layout = Layout(flatten(upper.adapter()))
        model = kind(upper, layout) if kind is Automatic else kind(upper, layout, lora)
        loss, vector = model.gradients(layout.join(flatten(upper.adapter())), transfer([batch])[0])
        found.append((loss.item(), {in_whole(name, frozen): one for name, one in layout.split(vector).items()}))
    (whole_loss, whole), (loss, split) = found
    assert loss == pytest.approx(whole_loss, rel=min(most, 1e-3))
    assert distance(split, whole) <= (most if adapter == "lora" or dtype == "float32" else 6e-2)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("layers", [2, 3])  # of three: with a frozen layer, and with none
def test_fused_layers_give_what_the_others_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: int, *, checkpointing: bool, quantized: bool
) -> None:
    folder = write_model(tmp_path / "model", "mistral", tokenizer="sentencepiece", sliding_window=None)
    config = json.loads((folder / "config.json").read_text())
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    (folder / "config.json").write_text(json.dumps(config | {"sliding_window": 6, "layer_types": kinds}))
    lora = dataclasses.replace(LORA, layers=2, targets=("v_proj", "up_proj", "k_proj"))
    batch = batch_of(examples(), 16, "completion")
    if layers == 2:
        states = np.random.default_rng(3).standard_normal((6, 16, 64)).astype(np.float32)
        batch = dataclasses.replace(batch, inputs=states)
    ready, results = transfer([batch])[0], []
    for kind in (Written, fused):
        whole, _ = load_base(folder)
        if quantized:
            nn.quantize(whole, group_size=32, bits=4)
        upper = Upper(whole, 3 - layers)
        upper.freeze()
        upper.checkpointing = checkpointing
        add_lora(upper, lora, seed=1)
        lively(upper)
        layout = Layout(flatten(upper.adapter()))
        model = kind(upper, layout, lora)
        vector = layout.join(flatten(upper.adapter()))
        loss, gradient = model.gradients(vector, ready)
        losses = model.losses(vector, ready)
        results.append((loss.item(), np.array(gradient), [one.item() for one in losses]))
    (loss, gradient, losses), (other, other_gradient, other_losses) = results
    assert other == pytest.approx(loss, rel=1e-5)
    assert other_losses == pytest.approx(losses, rel=1e-5)
    assert np.abs(gradient).max() > 1e-3
    assert np.linalg.norm(other_gradient - gradient) < 1e-5 * np.linalg.norm(gradient)


@pytest.mark.parametrize("kind", [Written, fused])
def test_behind_its_attention_the_last_layer_computes_what_the_loss_looks_at(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    seen: list[int] = []
    swiglu = layer.swiglu

    def noted(gate: mx.array, up: mx.array) -> mx.array:
        seen.append(len(gate))
        return swiglu(gate, up)

    for module in (layer, fused_module):
        monkeypatch.setattr(module, "swiglu", noted)
    upper = Upper(load_base(model_folder)[0], 1)
    upper.freeze()
    add_lora(upper, LORA, seed=1)
    layout = Layout(flatten(upper.adapter()))
    states = np.random.default_rng(3).standard_normal((6, 16, 48)).astype(np.float32)
    batch = dataclasses.replace(batch_of(examples(), 16, "completion"), inputs=states)
    mx.eval(kind(upper, layout, LORA).gradients(layout.join(flatten(upper.adapter())), transfer([batch])[0]))
    assert seen == [6 * 16, len(batch.positions)]
    assert len(batch.positions) == 6 * 4


def loss_and_gradients(model: nn.Module, loss: Any) -> tuple[float, dict[str, mx.array]]:
    """By automatic differentiation, the gradients in float32."""
    value, gradients = nn.value_and_grad(model, loss)(model)
    return value.item(), {name: one.astype(mx.float32) for name, one in tree_flatten(gradients)}


# With attention as plain products, and MLX's own; with kernels for the adapters, and without.
@pytest.mark.parametrize(
    ("plain", "rank", "counted"), [(512, 32, "all"), (512, 32, "completion"), (8, 32, "all"), (512, 7, "completion")]
)
def test_fused_layers_with_kernels_of_their_own_give_what_mlx_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: int, rank: int, counted: str
) -> None:
    monkeypatch.setattr("sqlora.train.cuda.layers._MOST_RANK", rank)
    for user in ("attention", "fused"):
        monkeypatch.setattr(f"sqlora.train.{user}.PLAIN_ATTENTION", plain)
    folder = write_model(tmp_path / "model", "mistral", tokenizer="sentencepiece", sliding_window=None)
    config = json.loads((folder / "config.json").read_text())
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    (folder / "config.json").write_text(json.dumps(config | {"sliding_window": 6, "layer_types": kinds}))
    lora = dataclasses.replace(LORA, layers=3, targets=("q_proj", "v_proj"))
    batch = batch_of(examples(2), 16, counted)
    assert picks_early(len(batch.positions), 32) == (counted == "completion")
    ran, results = cuda_on_cpu.use(monkeypatch, tmp_path), []
    for own in (False, True):
        monkeypatch.setattr("sqlora.train.cuda.kernels.has_cuda", lambda own=own: own)
        monkeypatch.setattr(mx, "default_device", lambda own=own: mx.Device(mx.gpu if own else mx.cpu))
        without_compiler(monkeypatch)
        upper = Upper(load_base(folder)[0], 0)
        upper.freeze()
        upper.checkpointing = True
        add_lora(upper, lora, seed=1)
        lively(upper)
        layout = Layout(flatten(upper.adapter()))
        model = Written(upper, layout, lora, fused=True)
        monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
        vector = layout.join(flatten(upper.adapter()))
        loss, gradient = model.gradients(vector, transfer([batch])[0])
        results.append((loss.item(), np.array(gradient)))
    softmax = {"softmax", "softmax_back"} if plain == 512 else set()
    adapters = {"norm_low", "factors_back"} if rank == 32 else set()
    always = {"rows", "entries", "entries_back", "gated", "turn", "turn_back", "norm_back", "gates_back"}
    assert set(ran) == always | softmax | adapters
    assert ran.count("turn_back") == 3
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-6)
    assert np.abs(results[0][1]).max() > 1e-3
    assert np.linalg.norm(results[1][1] - results[0][1]) < 1e-5 * np.linalg.norm(results[0][1])


@pytest.mark.parametrize("counted", ["completion", "all"])
@pytest.mark.parametrize(("tokens_of_own", "packed"), [(1024, False), (9, False), (1024, True), (9, True)])
def test_fused_layers_attend_by_kernels_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens_of_own: int, packed: bool, counted: str
) -> None:
    """For heads of 64 and types of 16 bits; a float16's rounding is what is between them and MLX.

    packed: with examples one after another, of several lengths, where MLX has padded rows.
    """
    monkeypatch.setattr("sqlora.train.cuda.layers.MOST_TOKENS", tokens_of_own)
    ran, results = cuda_on_cpu.use(monkeypatch, tmp_path), []
    losses: list[list[float]] = []
    without_compiler(monkeypatch)
    arguments = llama.ModelArgs(
        model_type="llama",
        hidden_size=32,
        num_hidden_layers=2,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        rms_norm_eps=1e-5,
        vocab_size=VOCABULARY,
        layer_types=["full_attention", "sliding_attention"],
        sliding_window=6,
    )
    rows = examples(3)[::-1]
    padded = batch_of(rows, 18, counted)
    one_row = batch_of(rows, 36, counted, packed=True, rows=1, counted=len(padded.positions) + 1)
    assert one_row.real_tokens == padded.real_tokens < 36 + 3, "some tokens fill it up"
    for batch in (padded, one_row):
        assert picks_early(len(batch.positions), math.prod(batch.inputs.shape)) == (counted == "completion")
    for own in (False, True):
        monkeypatch.setattr("sqlora.train.cuda.kernels.has_cuda", lambda own=own: own)
        mx.random.seed(3)
        upper = Upper(llama.Model(arguments), 0)
        upper.set_dtype(mx.float16)
        upper.freeze()
        add_lora(upper, dataclasses.replace(LORA, layers=2, targets=("q_proj", "v_proj", "down_proj")), seed=1)
        lively(upper)
        layout = Layout(flatten(upper.adapter()))
        monkeypatch.setattr(mx, "default_device", lambda own=own: mx.Device(mx.gpu if own else mx.cpu))
        model = Written(upper, layout, LORA, fused=True)
        monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
        assert model.packs == own
        batch = transfer([one_row if own and packed else padded])[0]
        loss, gradient = model.gradients(layout.join(flatten(upper.adapter())), batch)
        results.append((loss.item(), np.array(gradient)))
        every = batch_of(rows, 36, "all", packed=True, rows=1) if own and packed else batch_of(rows, 18, "all")
        losses.append([one.item() for one in model.losses(layout.join(flatten(upper.adapter())), transfer([every])[0])])
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    assert {"attend_64", "attend_means_64", "attend_back_64"} <= set(ran)
    assert ("norm_low" in ran) == (tokens_of_own == 1024)
    assert results[1][0] == pytest.approx(results[0][0], rel=2e-3)
    assert np.linalg.norm(results[1][1] - results[0][1]) < 1e-2 * np.linalg.norm(results[0][1])


def in_whole(name: str, frozen: int) -> str:
    """The name of an upper part's array in the whole model."""
    parts = name.split(".")[1:]
    parts[2] = str(int(parts[2]) + frozen)
    return ".".join(parts)


def distance(one: dict[str, mx.array], other: dict[str, mx.array]) -> float:
    """The length of the difference over the length of the other, all arrays taken as one vector."""
    square = sum(mx.square(one[name] - other[name]).sum().item() for name in other)
    return (square / sum(mx.square(value).sum().item() for value in other.values())) ** 0.5


def lively(model: nn.Module) -> None:
    """Give the second factors values, so that every gradient is other than zero, and DoRA's lengths others."""
    mx.random.seed(7)
    changed = {
        name: mx.random.normal(value.shape, dtype=value.dtype) * 0.05
        for name, value in tree_flatten(model.trainable_parameters())
        if name.endswith("lora_b")
    }
    changed |= {
        name: value * mx.random.uniform(0.8, 1.2, value.shape)
        for name, value in tree_flatten(model.trainable_parameters())
        if name.endswith(".m")
    }
    model.load_weights(list(changed.items()), strict=False)
