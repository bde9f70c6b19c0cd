from __future__ import annotations

import json
import shutil
from pathlib import Path

from sqlora.mlx import mx, nn, tree_flatten

import numpy as np
import pytest
from mlx_lm.utils import quantize_model, save_config, save_model
from tiny_model import write_checkpoint

from sqlora.convert.model import convert_model
from sqlora.errors import SqloraError
from sqlora.export.fuse import fuse_adapter
from sqlora.export.gguf import write_gguf
from sqlora.model import add_adapter, load_base

TOKENS = mx.array([[1, 300, 17, 400, 55, 260, 300, 9]])
KEYS = ["self_attn.q_proj", "mlp.down_proj"]


def make_adapter(model: Path, folder: Path, kind: str = "lora") -> Path:
    """A random adapter of two layers with mlx-lm's names."""
    folder.mkdir()
    parameters = {"rank": 2, "scale": 3.0, "dropout": 0.0, "keys": KEYS}
    config = {"fine_tune_type": kind, "num_layers": 2, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    sizes = json.loads((model / "config.json").read_text())
    dim, wide = sizes["hidden_size"], sizes["intermediate_size"]
    queries = sizes["num_attention_heads"] * sizes["head_dim"]
    weights = {}
    for layer in range(sizes["num_hidden_layers"] - 2, sizes["num_hidden_layers"]):
        for key, (inputs, outputs) in zip(KEYS, ((dim, queries), (wide, dim)), strict=True):
            weights[f"model.layers.{layer}.{key}.lora_a"] = mx.random.normal((inputs, 2)) * 0.1
            weights[f"model.layers.{layer}.{key}.lora_b"] = mx.random.normal((2, outputs)) * 0.1
            if kind == "dora":
                weights[f"model.layers.{layer}.{key}.m"] = mx.random.uniform(0.5, 2.0, (outputs,))
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    return folder


def logits(folder: Path, adapter: Path | None = None) -> np.ndarray:
    model, _ = load_base(folder)
    if adapter:
        add_adapter(model, adapter)
    return np.array(model(TOKENS)[0].astype(mx.float32))


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    """A 4-bit model, as mlx-lm writes it; the tiny one's rows are too short for that."""
    write_checkpoint(tmp_path / "source", dim=64, hidden_dim=128)
    plain = tmp_path / "plain"
    plain.mkdir()
    convert_model(tmp_path / "source", plain, dtype="float32")
    model, config = load_base(plain)
    model, config = quantize_model(model, config, group_size=32, bits=4)
    folder = tmp_path / "quantized"
    save_model(folder, model)
    save_config(config, config_path=folder / "config.json")
    shutil.copy(plain / "tokenizer.model", folder)
    return folder


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_quantized_base_is_dequantized_and_keeps_the_whole_adapter(
    quantized: Path, tmp_path: Path, kind: str
) -> None:
    adapter = make_adapter(quantized, tmp_path / "adapter", kind)
    fused = tmp_path / "fused"
    fused.mkdir()
    fuse_adapter(quantized, adapter, fused)
    config = json.loads((fused / "config.json").read_text())
    assert not [key for key in config if "quant" in key]
    model, _ = load_base(fused)
    assert not [layer for _, layer in model.named_modules() if isinstance(layer, nn.QuantizedLinear)]
    assert not [name for name, _ in tree_flatten(model.parameters()) if "scales" in name or "lora" in name]
    expected = logits(quantized, adapter)
    assert np.abs(logits(fused) - expected).max() < 1e-4
    assert np.abs(logits(quantized) - expected).max() > 0.1
    write_gguf(fused, tmp_path / "fused.gguf", name="fused")


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_files_beside_the_weights_are_the_bases(model_folder: Path, tmp_path: Path, kind: str) -> None:
    adapter = make_adapter(model_folder, tmp_path / "adapter", kind)
    fused = tmp_path / "fused"
    fused.mkdir()
    fuse_adapter(model_folder, adapter, fused)
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "generation_config.json"):
        assert (fused / name).read_bytes() == (model_folder / name).read_bytes(), name
    assert json.loads((fused / "config.json").read_text()) == json.loads((model_folder / "config.json").read_text())
    assert np.abs(logits(fused) - logits(model_folder, adapter)).max() < 1e-4


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_weights_keep_the_bases_number_type(source_folder: Path, tmp_path: Path, kind: str) -> None:
    model, fused = tmp_path / "model", tmp_path / "fused"
    for folder in (model, fused):
        folder.mkdir()
    convert_model(source_folder, model, dtype="bfloat16")
    adapter = make_adapter(model, tmp_path / "adapter", kind)
    fuse_adapter(model, adapter, fused)
    network, _ = load_base(fused)
    assert {value.dtype for _, value in tree_flatten(network.parameters())} == {mx.bfloat16}
    changed = np.abs(logits(model, adapter) - logits(model)).max()
    assert np.abs(logits(fused) - logits(model, adapter)).max() < 0.05 * changed


def test_what_is_missing_or_does_not_fit_is_said(model_folder: Path, quantized: Path, tmp_path: Path) -> None:
    adapter = make_adapter(model_folder, tmp_path / "adapter")
    out = tmp_path / "fused"
    out.mkdir()
    with pytest.raises(SqloraError, match=r"no such file; expected a converted model. Run dvc repro convert"):
        fuse_adapter(tmp_path / "nothing", adapter, out)
    with pytest.raises(SqloraError, match=r"adapter_config.json: found no such file; .*Run dvc repro train"):
        fuse_adapter(model_folder, tmp_path / "nothing", out)
    with pytest.raises(SqloraError, match="found an adapter that does not fit the base model"):
        fuse_adapter(quantized, adapter, out)
    assert list(out.iterdir()) == []
