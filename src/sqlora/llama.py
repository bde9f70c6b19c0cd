"""Which layers are those that sqlora computes by code of its own, and in what groups of projections on a GPU."""

from __future__ import annotations

from typing import Any

from sqlora.mlx import nn

from mlx_lm.models import llama
from mlx_lm.models.rope_utils import Llama3RoPE
from mlx_lm.tuner.lora import LoRALinear

from sqlora.merged import can_merge

# Projections that read the same input are one product.
GROUPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))


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


def mergeable(blocks: list[Any]) -> bool:
    """Whether the projections of each group of `GROUPS` can be merged, and all heads turned together."""
    # The values' heads are turned by the angle 0 with the others, which these two leave as they are.
    return supports(blocks) and all(
        type(block.self_attn.rope) in (nn.RoPE, Llama3RoPE)
        and all(can_merge(projections(block, group)) for group in GROUPS)
        for block in blocks
    )


def projections(block: Any, names: tuple[str, ...]) -> list[nn.Module]:
    """Modules of a layer by their names."""
    return [(block.self_attn if name in block.self_attn else block.mlp)[name] for name in names]
