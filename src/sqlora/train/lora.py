"""Puts fresh LoRA or DoRA layers on a base model, with mlx-lm's layers and adapter format."""

from __future__ import annotations

from typing import Any

from sqlora.mlx import mx, nn

from mlx_lm.tuner.utils import linear_to_lora_layers

from sqlora.errors import SqloraError
from sqlora.params.lora import LoraParams

BLOCKS = {
    "q_proj": "self_attn",
    "k_proj": "self_attn",
    "v_proj": "self_attn",
    "o_proj": "self_attn",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}


def add_lora(model: nn.Module, lora: LoraParams, seed: int) -> None:
    """Put LoRA (Hu et al., 2021) or DoRA (Liu et al., 2024) layers on the top layers; only they are trainable then.

    The first factor is drawn from `seed`, the second is zero, and DoRA's lengths are those of the base's weights, so
    the model's output is unchanged at first.
    """
    if lora.layers > len(model.layers):
        raise SqloraError(
            "params.yaml",
            found=f"lora.layers: {lora.layers}",
            expected=f"at most {len(model.layers)}, the number of layers of the base model",
            next_step="Lower lora.layers.",
        )
    mx.random.seed(seed)  # mlx-lm's layers draw from the global stream
    linear_to_lora_layers(model, lora.layers, _lora_parameters(lora), use_dora=lora.adapter == "dora")
    model.unfreeze(keys=["lora_a", "lora_b", "m"], strict=False)
    mx.eval(model.trainable_parameters())


def adapter_config(lora: LoraParams) -> dict[str, Any]:
    """The content of adapter_config.json, as mlx-lm reads it."""
    return {"fine_tune_type": lora.adapter, "num_layers": lora.layers, "lora_parameters": _lora_parameters(lora)}


def _lora_parameters(lora: LoraParams) -> dict[str, Any]:
    keys = [f"{BLOCKS[target]}.{target}" for target in lora.targets]
    return {"rank": lora.rank, "scale": lora.scale, "dropout": lora.dropout, "keys": keys}
