"""Reads a fused model: its settings, the tensors that they ask for, and where those are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sqlora.errors import SqloraError

FUSE_AGAIN = "Run dvc repro -f export/dvc.yaml:fuse."
USE_LLAMA_CPP = "Give the folder to convert_hf_to_gguf.py of llama.cpp instead."
# Anything else would be computed differently by llama.cpp's `llama`, or needs what is not written here.
_ALLOWED: dict[str, tuple[object, ...]] = {
    "model_type": ("mistral", "llama"),
    "hidden_act": ("silu", None),
    "rope_scaling": (None,),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "quantization": (None,),
}
_REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "rms_norm_eps",
    "vocab_size",
)
_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Checkpoint:
    """config: of config.json, with every default filled in; shapes: of each tensor, by Hugging Face's names, in the
    order of the layers; dtype: of the matrices."""

    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    dtype: torch.dtype
    files: dict[str, Path]

    def read(self, name: str) -> torch.Tensor:
        """The tensor of that name, in memory."""
        with safe_open(self.files[name], framework="pt") as handle:
            tensor: torch.Tensor = handle.get_tensor(name)
        return tensor


def open_checkpoint(folder: Path) -> Checkpoint:
    """Look into a folder in Hugging Face's layout without reading its weights.

    Raises:
        SqloraError: if something is missing or damaged, or the model is not one that llama.cpp computes as `llama`.
    """
    config = _read_config(folder)
    shapes = _shapes(config)
    files, dtype = _find_tensors(folder, shapes)
    return Checkpoint(config, shapes, dtype, files)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else f"no readable JSON ({error})"
        raise SqloraError(path, found=found, expected="a fused model", next_step=FUSE_AGAIN) from None
    # transformers 5 writes the rotary settings as a table of their own.
    rope = config.get("rope_parameters") or {}
    config.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = rope
    unfit = [f"{key}: {config.get(key)!r}" for key, allowed in _ALLOWED.items() if config.get(key) not in allowed]
    unfit += [f"no {key}" for key in _REQUIRED if key not in config]
    if "sliding_attention" in (config.get("layer_types") or ()):
        unfit.append("layer_types with sliding_attention")
    if unfit:
        raise SqloraError(
            path,
            found=", ".join(unfit),
            expected="a plain, unquantized model of the Llama architecture",
            next_step=FUSE_AGAIN if config.get("quantization") else USE_LLAMA_CPP,
        )
    if not config.get("head_dim"):
        config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    if not config.get("num_key_value_heads"):
        config["num_key_value_heads"] = config["num_attention_heads"]
    return config


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor, in the order in which they are written."""
    dim, wide, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    in_layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (dim,),
        "self_attn.q_proj": (queries, dim),
        "self_attn.k_proj": (keys, dim),
        "self_attn.v_proj": (keys, dim),
        "self_attn.o_proj": (dim, queries),
        "post_attention_layernorm": (dim,),
        "mlp.gate_proj": (wide, dim),
        "mlp.up_proj": (wide, dim),
        "mlp.down_proj": (dim, wide),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], dim)}
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in in_layer.items()}
    shapes["model.norm.weight"] = (dim,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (config["vocab_size"], dim)
    return shapes


def _find_tensors(folder: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, Path], torch.dtype]:
    """The file of every tensor; everything that is missing, superfluous or misshapen is reported together."""
    files: dict[str, Path] = {}
    found: dict[str, tuple[int, ...]] = {}
    kinds: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118 - a handle is no mapping
                    part = handle.get_slice(name)
                    files[name], found[name] = path, tuple(part.get_shape())
                    if len(found[name]) > 1:
                        kinds.add(part.get_dtype())
        except (OSError, SafetensorError) as error:
            raise SqloraError(
                path, found=f"no readable safetensors ({error})", expected="weights", next_step=FUSE_AGAIN
            ) from None
    problems = [f"no {name}" for name in shapes if name not in found]
    problems += [f"an unknown {name}" for name in found if name not in shapes]
    problems += [f"{name} of shape {found[name]}" for name in shapes if found.get(name, shapes[name]) != shapes[name]]
    if len(kinds) != 1 or not kinds <= _TYPES.keys():
        problems.append(f"matrices of type {', '.join(sorted(kinds)) or 'nothing'}")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise SqloraError(
            folder,
            found="; ".join(problems[:5]) + more,
            expected=f"the {len(shapes)} tensors of config.json's model, in one of {', '.join(_TYPES)}",
            next_step=FUSE_AGAIN,
        )
    return files, _TYPES[kinds.pop()]
