"""Reads a Hugging Face style folder of a Llama-architecture model: config.json and safetensors, both checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlora.convert.checkpoint import listing
from sqlora.convert.lazy import LazyTensors
from sqlora.errors import SqloraError

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# model_type -> the value that transformers takes where the config does not name it.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048, "sliding_window": None},
    "mistral": {"max_position_embeddings": 131072, "sliding_window": 4096},
}
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_MORE_SIZES = ("num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window")
_LARGEST_SIZE = 10_000_000
# What mlx-lm's definition of the architecture reads besides the sizes.
_COMPUTES = {
    *("model_type", "rms_norm_eps", "attention_bias", "mlp_bias", "rope_theta", "rope_scaling", "rope_parameters"),
    *("tie_word_embeddings", "layer_types"),
}
# What describes, trains or serves a model but does not change what it computes.
_HARMLESS = {
    *("architectures", "torch_dtype", "dtype", "transformers_version", "use_cache", "initializer_range"),
    *("attention_dropout", "hidden_dropout", "bos_token_id", "eos_token_id", "pad_token_id", "pretraining_tp"),
    *("_name_or_path", "name_or_path", "output_attentions", "output_hidden_states", "return_dict", "is_llama_config"),
    *("problem_type", "id2label", "label2id", "chunk_size_feed_forward", "_attn_implementation", "unsloth_version"),
    *("unsloth_fixed", "transformers.js_config", "max_sequence_length", "task_specific_params", "finetuning_task"),
}
# Fields that others read, with the one value under which they change nothing.
_FIXED = {"hidden_act": "silu", "rope_interleaved": False, "rope_traditional": False, "partial_rotary_factor": 1.0}
# Longrope and others exist in mlx-lm but compute something else than transformers.
_ROPES = ("default", "linear", "dynamic", "llama3")
_ROPE_NEEDS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_FLOATS = ("F32", "BF16", "F16")
_FETCH_AGAIN = "Check that model.source is a Llama-architecture model whose files belong together, and fetch it again."


def read_llama_config(path: Path) -> dict[str, Any]:
    """Read config.json; returns it as mlx-lm is to read it.

    mlx-lm and transformers assume different things where a field is absent, and mlx-lm does not read the newer
    `rope_parameters`; so what transformers would assume is written out. Everything else is kept as it is.

    Raises:
        SqloraError: listing every missing, unusable and unknown field. An unknown one may change what the model
            computes, and mlx-lm would ignore it.
    """
    config = read_json(path, "the config of a Llama-architecture model")
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _DEFAULTS:
        raise _bad_config(path, f"model_type {str(kind)[:60]!r}")
    problems = [f"{name} is missing" for name in (*_SIZES, "rms_norm_eps") if config.get(name) is None]
    for name in (*_SIZES, *_MORE_SIZES):
        if config.get(name) is not None and not _is_size(config[name]):
            problems.append(f"{name} is {config[name]!r}, not a whole number from 1 to {_LARGEST_SIZE}")
    known = {*_SIZES, *_MORE_SIZES, *_COMPUTES, *_HARMLESS, *_FIXED}
    problems += [
        f"{str(name)[:60]} is not a field that mlx-lm's Llama architecture knows"
        for name, value in config.items()
        if name not in known and value not in (None, False)
    ]
    for name, value in _FIXED.items():
        if config.get(name, value) not in (value, None):
            problems.append(f"{name} is {config[name]!r}, where only {value!r} is known")
    for name in ("attention_bias", "mlp_bias", "tie_word_embeddings"):
        if config.get(name) not in (None, True, False):
            problems.append(f"{name} is {config[name]!r}, neither true nor false")
    rope = _rope(config, problems)
    for name, value in (("rms_norm_eps", config.get("rms_norm_eps")), ("rope_theta", rope["rope_theta"])):
        if value is not None and not _is_positive(value):
            problems.append(f"{name} is {value!r}, not a number above 0")
    if not problems:
        problems = _disagreements(config)
    if problems:
        raise _bad_config(path, listing(problems))
    assumed = _DEFAULTS[kind] | {"tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False}
    if kind == "mistral" and "sliding_window" in config:
        del assumed["sliding_window"]  # there, null means no window
    given = {name: value for name, value in config.items() if value is not None or name == "sliding_window"}
    return assumed | given | rope


def llama_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that such a config implies, in the order in which a forward pass uses them."""
    dim, wide, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head = config.get("head_dim") or dim // heads
    queries, keys = heads * head, (config.get("num_key_value_heads") or heads) * head
    attention = {"q_proj": (queries, dim), "k_proj": (keys, dim), "v_proj": (keys, dim), "o_proj": (dim, queries)}
    feed = {"gate_proj": (wide, dim), "up_proj": (wide, dim), "down_proj": (dim, wide)}
    layer: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (dim,)}
    for block, projections, bias in (("self_attn", attention, "attention_bias"), ("mlp", feed, "mlp_bias")):
        for name, shape in projections.items():
            layer[f"{block}.{name}.weight"] = shape
            if config.get(bias):
                layer[f"{block}.{name}.bias"] = shape[:1]
        if block == "self_attn":
            layer["post_attention_layernorm.weight"] = (dim,)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], dim)}
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (dim,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (config["vocab_size"], dim)
    return shapes


def open_llama_weights(folder: Path, config: Mapping[str, Any]) -> LazyTensors:
    """Open the weights without reading them; raises SqloraError that names every tensor that does not fit the config.

    Tensors that mlx-lm leaves out too are no error: an output matrix beside tied embeddings, old rotary tables.
    """
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    place: dict[str, str] = {}
    if single.is_file() or not index.is_file():
        files = [single]
    else:
        place = _read_index(index)
        files = [folder / name for name in sorted(set(place.values()))]
    tensors = LazyTensors(files, _FETCH_AGAIN)
    # Compared by count first, so that an absurd number of layers is not spelled out.
    if config["num_hidden_layers"] > len(tensors.shapes):
        found = f"{len(tensors.shapes)} tensors, fewer than {CONFIG_FILE} has layers ({config['num_hidden_layers']})"
        raise _bad_weights(files[0], found)
    shapes = llama_shapes(config)
    problems = [f"{name} is missing" for name in shapes if name not in tensors.shapes]
    for name, shape in tensors.shapes.items():
        if name not in shapes:
            if not (name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight")):
                problems.append(f"{name[:100]} is not a tensor of this architecture")
        elif shape != shapes[name]:
            problems.append(f"{name} has shape {shape} where {CONFIG_FILE} implies {shapes[name]}")
        elif tensors.dtypes[name] not in _FLOATS:
            problems.append(f"{name} is {tensors.dtypes[name]}, not one of {', '.join(_FLOATS)}")
    for name, file in place.items():
        if name in tensors.files and tensors.files[name].name != file:
            problems.append(f"{name} is in {tensors.files[name].name}, where the index says {file}")
    if problems:
        raise _bad_weights(files[0] if len(files) == 1 else index, listing(problems))
    return tensors


def read_json(path: Path, expected: str) -> dict[str, Any]:
    """Read a JSON object; raises SqloraError, also for a missing file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else f"no readable JSON ({error})"
        raise SqloraError(path, found=found, expected=expected, next_step=_FETCH_AGAIN) from None
    if not isinstance(content, dict):
        found = f"a JSON {type(content).__name__}"
        raise SqloraError(path, found=found, expected=expected, next_step=_FETCH_AGAIN)
    return content


def _read_index(path: Path) -> dict[str, str]:
    expected = "weight_map, the file of each tensor, each in this folder"
    place = read_json(path, expected).get("weight_map")
    if not isinstance(place, dict) or not place:
        raise SqloraError(path, found="no weight_map", expected=expected, next_step=_FETCH_AGAIN)
    for file in place.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise SqloraError(path, found=f"the file {str(file)[:80]!r}", expected=expected, next_step=_FETCH_AGAIN)
    return place


def _rope(config: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """rope_theta and rope_scaling as mlx-lm reads them, from either way in which transformers writes them."""
    parameters = config.get("rope_parameters")
    scaling = config.get("rope_scaling")
    theta = config.get("rope_theta")
    for name, value in (("rope_parameters", parameters), ("rope_scaling", scaling)):
        if value is not None and not isinstance(value, dict):
            problems.append(f"{name} is {value!r}, neither null nor an object")
            return {"rope_theta": 10000.0}
    if parameters:
        theta = parameters.get("rope_theta", theta)
        scaling = scaling or {name: value for name, value in parameters.items() if name != "rope_theta"}
    result = {"rope_theta": 10000.0 if theta is None else theta}
    kind = (scaling or {}).get("rope_type") or (scaling or {}).get("type") or "default"
    if kind not in _ROPES:
        problems.append(f"rope_scaling of type {kind!r}, where {', '.join(_ROPES)} are known")
    elif scaling and kind != "default":
        for name in _ROPE_NEEDS[kind]:
            if not _is_positive(scaling.get(name)):
                problems.append(f"rope_scaling.{name} is {scaling.get(name)!r}, not a number above 0")
        result["rope_scaling"] = scaling | {"rope_type": kind}
    return result


def _disagreements(config: Mapping[str, Any]) -> list[str]:
    problems = []
    dim, heads = config["hidden_size"], config["num_attention_heads"]
    keys = config.get("num_key_value_heads") or heads
    if heads % keys:
        problems.append(f"num_attention_heads {heads} is no multiple of num_key_value_heads {keys}")
    if not config.get("head_dim") and dim % heads:
        problems.append(f"hidden_size {dim} is no multiple of num_attention_heads {heads}, and head_dim is not given")
    elif (config.get("head_dim") or dim // heads) % 2:
        problems.append("head_dim is odd, so rotary pairs are impossible")
    types = config.get("layer_types")
    if types is not None:
        allowed = {"full_attention", "sliding_attention"}
        if (
            not isinstance(types, list)
            or len(types) != config["num_hidden_layers"]
            or not all(isinstance(kind, str) and kind in allowed for kind in types)
            or "full_attention" not in types
            or ("sliding_attention" in types and not config.get("sliding_window"))
        ):
            problems.append(
                "layer_types is not a list of full_attention and sliding_attention (with sliding_window), "
                "one for each layer and the first of them somewhere"
            )
        elif "sliding_attention" in types and config["model_type"] == "llama":
            problems.append(
                "layer_types has sliding_attention, which transformers ignores in a llama and mlx-lm does not"
            )
    return problems


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LARGEST_SIZE


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _bad_config(path: Path, found: str) -> SqloraError:
    return SqloraError(
        path,
        found=found,
        expected=f"the config.json of a Llama-architecture model (model_type {' or '.join(_DEFAULTS)}) whose fields "
        "mlx-lm computes as transformers does",
        next_step="Use another base model, or one of these types in its plain form.",
    )


def _bad_weights(path: Path, found: str) -> SqloraError:
    return SqloraError(
        path, found=found, expected=f"exactly the tensors that {CONFIG_FILE} implies", next_step=_FETCH_AGAIN
    )
