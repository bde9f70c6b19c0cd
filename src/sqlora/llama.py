"""Which layers are those that sqlora computes by code of its own."""

from __future__ import annotations

from typing import Any

from sqlora.mlx import nn

from mlx_lm.models import llama
from mlx_lm.tuner.lora import LoRALinear


def supports(blocks: list[Any]) -> bool:
    """Whether these layers are of the plain Llama architecture, with LoRA or without adapters."""
    for block in blocks:
        if type(block) is not llama.TransformerBlock:
            return False
        for module in (*block.self_attn.children().values(), *block.mlp.children().values()):
            base = module.linear if type(module) is LoRALinear else module
            if isinstance(module, nn.Linear | nn.QuantizedLinear | LoRALinear) and (
                type(base) not in (nn.Linear, nn.QuantizedLinear) or "bias" in base
            ):
                return False
            if hasattr(module, "lora_a") and type(module) is not LoRALinear:
                return False
    return True
