"""Adds an adapter's products to the base model's weights, for tools that know no adapters."""

from __future__ import annotations

import shutil
from pathlib import Path

from sqlora.mlx import mx, nn, tree_unflatten

from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.utils import dequantize_model, save_config, save_model

from sqlora.errors import SqloraError
from sqlora.model import add_adapter, load_base

# The base's own tokenizer: mlx_lm.fuse writes it anew, and then "<s>" in a question is no longer text, and leaves
# out tokenizer.model, which GGUF needs. Which of these there are depends on the base.
COPIED = (
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
)


def fuse_adapter(model: Path, adapter: Path, folder: Path) -> None:
    """Write the model with `adapter` fused into it: the weights of `mlx_lm.fuse --dequantize`, the base's tokenizer.

    Weights keep the base's dtype. A quantized base is dequantized: quantized again, its weights would be rounded by
    steps about as large as what the adapter adds (the demo in 4 bits: 13 of 100 answers change, without none).

    Args:
        model: what the convert stage wrote; held in memory as a whole.
        adapter: what the train stage wrote.
        folder: exists and is empty.

    Raises:
        SqloraError: if model or adapter is missing, does not load, or one does not belong to the other.
    """
    if not (adapter / "adapter_config.json").is_file():
        raise SqloraError(
            adapter / "adapter_config.json",
            found="no such file",
            expected="a trained adapter",
            next_step="Run dvc repro train.",
        )
    network, config = load_base(model)
    add_adapter(network, adapter)
    layers = [(name, _fused(layer)) for name, layer in network.named_modules() if _adapted(layer)]
    network.update_modules(tree_unflatten(layers))
    network = dequantize_model(network)
    for key in ("quantization", "quantization_config"):
        config.pop(key, None)
    save_model(folder, network, donate_model=True)
    save_config(config, config_path=folder / "config.json")
    for name in COPIED:
        if (model / name).is_file():
            shutil.copyfile(model / name, folder / name)


def _fused(layer: nn.Module) -> nn.Module:
    """A plain layer that computes the same."""
    fused: nn.Module = layer.fuse(dequantize=True)
    if isinstance(layer, DoRALinear):
        # mlx-lm takes the lengths of rows that it has rounded already, and writes float32 whatever the base has.
        weight = layer._dequantized_weight()
        exact = weight.astype(mx.float32) + layer.scale * (layer.lora_b.T @ layer.lora_a.T)
        exact = exact * (layer.m / mx.linalg.norm(exact, axis=1))[:, None]
        fused.weight = exact.astype(weight.dtype)
    return fused


def _adapted(layer: nn.Module) -> bool:
    return hasattr(layer, "fuse")
