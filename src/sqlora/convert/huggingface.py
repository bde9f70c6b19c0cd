"""Mistral's names, rotary order and configuration in Hugging Face's terms, which mlx-lm and most tools read.

Mistral rotates the pairs (0, 1), (2, 3), … of each head; Hugging Face's convention pairs i with i + head_dim / 2. The
scores q·k depend on the pairing only, so reordering the rows of wq and wk once gives the same model under the other
convention, and no consumer needs a flag (mlx-lm's `rope_traditional`) to get it right.
"""

from __future__ import annotations

from typing import Any

import torch

from sqlora.convert.checkpoint import MistralConfig

_OUTSIDE_LAYERS = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
# The sequence length that Mistral-7B was published with; params.json says nothing about it.
_MAX_POSITIONS = 32768


def huggingface_name(name: str) -> str:
    """`layers.3.attention.wq.weight` -> `model.layers.3.self_attn.q_proj.weight`; KeyError for an unknown name."""
    if name in _OUTSIDE_LAYERS:
        return _OUTSIDE_LAYERS[name]
    _, index, rest = name.split(".", 2)
    return f"model.layers.{index}.{_IN_LAYER[rest.removesuffix('.weight')]}.weight"


def huggingface_tensor(name: str, tensor: torch.Tensor, config: MistralConfig) -> torch.Tensor:
    """The tensor of that Mistral name with its rows in Hugging Face's order; only wq and wk change."""
    if name.endswith((".wq.weight", ".wk.weight")):
        return split_rotary_pairs(tensor, config.head_dim)
    return tensor


def split_rotary_pairs(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Reorder each head's rows from (a0 b0 a1 b1 …) to (a0 a1 … b0 b1 …).

    Args:
        weight: (heads * head_dim, inputs).
        head_dim: even.
    """
    pairs = weight.reshape(-1, head_dim // 2, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)


def model_config(config: MistralConfig, *, dtype: str, bos: int, eos: int) -> dict[str, Any]:
    """The contents of config.json; `bos` and `eos` are token ids."""
    return {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "sliding_window": config.sliding_window,
        "max_position_embeddings": _MAX_POSITIONS,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "torch_dtype": dtype,
        "use_cache": True,
    }


def generation_config(*, bos: int | None, eos: int) -> dict[str, Any]:
    """The contents of generation_config.json: greedy, as sqlora decodes."""
    start = {} if bos is None else {"bos_token_id": bos}
    return start | {"eos_token_id": eos, "do_sample": False}
