"""Quantized bases: the same as mlx-lm's own, and trained, generated from and counted like any other."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from sqlora.mlx import mx, nn, optimizers, tree_flatten

import numpy as np
import pytest
import tiny_llama
import tiny_model
import torch
from contract import ROOT

from sqlora.convert.model import convert_model
from sqlora.convert.quantize import quantize_weight
from sqlora.count import count_parameters
from sqlora.errors import SqloraError
from sqlora.model import load_base
from sqlora.params.all import check_params


def source(tmp_path: Path, kind: str) -> Path:
    if kind == "mistral format":  # rows of w2 are no multiple of 64
        tiny_model.write_checkpoint(tmp_path / "source", dim=64, hidden_dim=160, dtype=torch.bfloat16)
        return tmp_path / "source"
    return tiny_llama.write_model(
        tmp_path / "source", tie_word_embeddings=True, attention_bias=True, dtype=torch.bfloat16
    )


def converted(source: Path, folder: Path, dtype: str = "bfloat16", bits: int | None = 4, group: int = 32) -> Path:
    folder.mkdir()
    convert_model(source, folder, dtype=dtype, quantize=bits, group_size=group, shard_bytes=60_000)
    return folder


def arrays(folder: Path) -> dict[str, mx.array]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in mx.load(str(file)).items()}


@pytest.mark.parametrize(
    ("kind", "dtype", "bits", "group"),
    [
        ("mistral format", "bfloat16", 4, 64),
        ("mistral format", "float32", 8, 32),
        ("tied llama with biases", "bfloat16", 4, 32),
        ("tied llama with biases", "float16", 8, 64),
    ],
)
def test_weights_and_config_are_those_of_mlx_lm(tmp_path: Path, kind: str, dtype: str, bits: int, group: int) -> None:
    import mlx_lm

    made = source(tmp_path, kind)
    plain = converted(made, tmp_path / "plain", dtype, None)
    own = converted(made, tmp_path / "own", dtype, bits, group)
    mlx_lm.convert(str(plain), str(tmp_path / "theirs"), quantize=True, q_bits=bits, q_group_size=group, dtype=dtype)
    expected, got = arrays(tmp_path / "theirs"), arrays(own)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype, name
        assert mx.array_equal(got[name], value).item(), name
    settings = {"group_size": group, "bits": bits, "mode": "affine"}
    config, theirs = (json.loads((folder / "config.json").read_text()) for folder in (own, tmp_path / "theirs"))
    assert config["quantization"] == config["quantization_config"] == settings == theirs["quantization"]
    model, tokenizer = mlx_lm.load(str(own))
    assert isinstance(model.layers[0].self_attn.q_proj, nn.QuantizedLinear)
    assert isinstance(model.model.embed_tokens, nn.QuantizedEmbedding)
    assert isinstance(mlx_lm.generate(model, tokenizer, "table", max_tokens=2), str)


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(37, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    whole = quantize_weight(tensor, 4, 32)
    monkeypatch.setattr("sqlora.convert.quantize._CHUNK_BYTES", 1000)
    parts = quantize_weight(tensor, 4, 32)
    assert [t.dtype for t in parts] == [torch.uint32, torch.bfloat16, torch.bfloat16]
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_what_cannot_be_quantized_is_said(tmp_path: Path) -> None:
    made = source(tmp_path, "mistral format")
    (tmp_path / "model").mkdir()
    notes = convert_model(made, tmp_path / "model", dtype="float32", quantize=4, group_size=64)
    assert notes == ["not quantized, because their rows are no multiple of 64: down_proj"]
    tiny_model.write_checkpoint(tmp_path / "odd", n_heads=5, n_kv_heads=1, head_dim=8)
    with pytest.raises(SqloraError, match=r"no matrix whose rows are a multiple of 64.*Lower convert\.group_size"):
        converted(tmp_path / "odd", tmp_path / "to", group=64)


def test_parameters_are_counted_as_if_not_quantized(tmp_path: Path) -> None:
    for kind in ("mistral format", "tied llama with biases"):
        (tmp_path / kind).mkdir()
        made = source(tmp_path / kind, kind)
        plain, _ = load_base(converted(made, tmp_path / kind / "plain", bits=None))
        _, config = load_base(converted(made, tmp_path / kind / "own"))
        assert count_parameters(config) == sum(value.size for _, value in tree_flatten(plain.parameters()))


@pytest.mark.parametrize("kind", ["mistral format", "tied llama with biases"])
def test_an_adapter_is_trained_on_it_and_used(tmp_path: Path, kind: str) -> None:
    from sqlora.train.lora import add_lora

    lora = dataclasses.replace(check_params(ROOT / "params.yaml")["lora"], layers=2, rank=4, scale=10.0)
    folder = converted(source(tmp_path, kind), tmp_path / "model", "float32")
    model, _ = load_base(folder)
    frozen = {name: np.array(value) for name, value in tree_flatten(model.parameters())}
    add_lora(model, lora, seed=1)
    rows = mx.array([[5, 6, 7, 8, 40, 41, 42], [9, 8, 7, 6, 40, 41, 43]])

    def loss(model: nn.Module) -> mx.array:
        return nn.losses.cross_entropy(model(rows[:, :-1]), rows[:, 1:], reduction="mean")

    step, optimizer = nn.value_and_grad(model, loss), optimizers.Adam(learning_rate=2e-2)
    losses = []
    for _ in range(20):
        value, gradients = step(model)
        optimizer.update(model, gradients)
        losses.append(value.item())
    assert losses[-1] < losses[0] - 1
    names = [name for name, _ in tree_flatten(model.trainable_parameters())]
    assert len(names) == 2 * 2 * len(lora.targets)
    assert all(name.endswith(("lora_a", "lora_b")) for name in names)
    after = {name.replace(".linear.", "."): np.array(value) for name, value in tree_flatten(model.parameters())}
    assert all(np.array_equal(after[name], value) for name, value in frozen.items())
