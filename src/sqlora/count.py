"""Counts parameters from a config.json alone, without weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlora.errors import SqloraError

_NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def projection_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Projection of a layer -> (inputs, outputs), for a Llama-architecture config (Mistral, Llama, SmolLM2, …).

    Raises:
        SqloraError: listing the keys that the config lacks.
    """
    if missing := [key for key in _NEEDED if key not in config]:
        raise SqloraError(
            "config.json",
            found=f"no {', '.join(missing)}",
            expected="the config of a Llama-architecture model",
            next_step="Run `dvc repro convert` to make the model folder again.",
        )
    hidden, wide, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    queries, keys = heads * head, (config.get("num_key_value_heads") or heads) * head
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, wide),
        "up_proj": (hidden, wide),
        "down_proj": (wide, hidden),
    }


def count_parameters(config: Mapping[str, Any]) -> int:
    """Parameters of the whole model; quantized weights count as if they were not."""
    shapes = projection_shapes(config)
    hidden = config["hidden_size"]
    layer = sum(inputs * outputs for inputs, outputs in shapes.values()) + 2 * hidden
    if config.get("attention_bias"):
        layer += sum(shapes[name][1] for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
    if config.get("mlp_bias"):
        layer += sum(shapes[name][1] for name in ("gate_proj", "up_proj", "down_proj"))
    # mlx-lm takes embeddings for tied unless the config says otherwise.
    embeddings = 1 if config.get("tie_word_embeddings", True) else 2
    return int(config["num_hidden_layers"] * layer + hidden + embeddings * config["vocab_size"] * hidden)


def count_adapter_parameters(
    config: Mapping[str, Any], *, adapter: str, layers: int, rank: int, targets: Iterable[str]
) -> int:
    """Trainable parameters of an adapter: two factors of that rank for each target of each of the top `layers`.

    Those of `dora` have a number for each output as well.

    Raises:
        SqloraError: for more layers than the model has, or a target that no layer has.
    """
    shapes, targets = projection_shapes(config), list(targets)
    if layers > config["num_hidden_layers"]:
        raise SqloraError(
            "params.yaml, lora.layers",
            found=str(layers),
            expected=f"at most {config['num_hidden_layers']}, the layers that this base model has",
            next_step="Lower lora.layers.",
        )
    if unknown := [target for target in targets if target not in shapes]:
        raise SqloraError(
            "params.yaml, lora.targets",
            found=", ".join(unknown),
            expected=f"some of {', '.join(shapes)}",
            next_step="Correct lora.targets.",
        )
    return sum_adapter(shapes, adapter, layers, rank, targets)


def sum_adapter(
    shapes: Mapping[str, tuple[int, int]], adapter: str, layers: int, rank: int, targets: Iterable[str]
) -> int:
    """The same for projections of these shapes, all of which are there."""
    return layers * sum(rank * sum(shapes[one]) + (adapter == "dora") * shapes[one][1] for one in targets)
