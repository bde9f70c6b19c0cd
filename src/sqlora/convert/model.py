"""Turns a source model into a folder that mlx-lm, and whatever reads Hugging Face's layout, loads as it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sqlora.convert import checkpoint, llama
from sqlora.convert.huggingface import generation_config, huggingface_name, huggingface_tensor, model_config
from sqlora.convert.pickled import PickledWeights, weight_files
from sqlora.convert.quantize import (
    is_quantized,
    quantization_config,
    quantize_weight,
    quantized_entries,
    require_some,
)
from sqlora.convert.shards import SHARD_BYTES, Entry, write_shards
from sqlora.convert.tokenizer import convert_tokenizer
from sqlora.convert.tokenizer_folder import SpecialTokens, convert_tokenizer_folder
from sqlora.errors import SqloraError
from sqlora.progress import progress

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Source:
    """A source model of either format, in Hugging Face's names.

    config: of config.json, less what quantization adds; generation: of generation_config.json.
    shapes: of every tensor, in the order of a forward pass. load: the tensor of a name, maybe mapped memory; where: its
    place, for messages. notes: what a user should know.
    """

    config: dict[str, Any]
    generation: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    load: Callable[[str], torch.Tensor]
    where: Callable[[str], str]
    notes: list[str]


def convert_model(
    source: Path,
    folder: Path,
    *,
    dtype: str,
    quantize: int | None = None,
    group_size: int = 64,
    shard_bytes: int = SHARD_BYTES,
) -> list[str]:
    """Write config.json, generation_config.json, tokenizer files and weights of `source` into `folder`.

    Args:
        source: holds a model in Hugging Face's format (config.json, safetensors, tokenizer files), or else in
            Mistral's (params.json, consolidated.NN.pth, tokenizer.model).
        folder: exists and is empty.
        dtype: a key of DTYPES, of the written weights; of scales and biases where they are quantized.
        quantize: bits of a weight, or None; group_size: how many weights of a row share a scale.
        shard_bytes: size of a weights file.

    Returns:
        Lines that the user should see.

    Raises:
        SqloraError: if a file is missing or damaged, if they do not fit each other, or if a weight is not finite, be
            it only in `dtype`.
    """
    target = DTYPES[dtype]
    opened = _open_llama if (source / llama.CONFIG_FILE).is_file() else _open_mistral
    model = opened(source, folder, dtype)
    notes = list(model.notes)
    entries: dict[str, Sequence[Entry]] = {name: [Entry(name, s, target)] for name, s in model.shapes.items()}
    config = model.config
    if quantize:
        config = config | quantization_config(quantize, group_size)
        left = require_some(model.shapes, group_size, source)
        if left:
            kinds = sorted({name.rsplit(".", 2)[1] for name in left})
            notes.append(f"not quantized, because their rows are no multiple of {group_size}: {', '.join(kinds)}")
        for name, shape in model.shapes.items():
            if is_quantized(name, shape, group_size):
                entries[name] = quantized_entries(name, shape, target, quantize, group_size)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", model.generation)

    total = sum(entry.nbytes for parts in entries.values() for entry in parts)
    with progress("convert", total=total, unit="B", bytes_=True) as bar:

        def load(name: str) -> list[torch.Tensor]:
            tensor = cast_weight(model.load(name), target, model.where(name))
            bar.update(sum(entry.nbytes for entry in entries[name]))
            if quantize and len(entries[name]) > 1:
                return quantize_weight(tensor, quantize, group_size)
            return [tensor]

        write_shards(folder, entries, load, limit=shard_bytes)
    return notes


def cast_weight(tensor: torch.Tensor, dtype: torch.dtype, where: str) -> torch.Tensor:
    """The tensor in `dtype`, contiguous; raises SqloraError for NaN, infinity and what `dtype` cannot hold."""
    cast = tensor.to(dtype).contiguous()
    # Both ends are NaN if any value is; 30 times faster than isfinite() on every value.
    low, high = torch.aminmax(cast)
    if torch.isfinite(low) and torch.isfinite(high):
        return cast
    if bad := int((~torch.isfinite(tensor)).sum()):
        raise SqloraError(
            where,
            found=f"{bad} of {tensor.numel()} values that are NaN or infinite",
            expected="finite weights",
            next_step="The checkpoint is damaged or its training diverged: fetch it again, or use another.",
        )
    raise SqloraError(
        where,
        found=f"values up to {float(tensor.abs().max()):g}",
        expected=f"at most {torch.finfo(dtype).max:g}, the largest {str(dtype).removeprefix('torch.')}",
        next_step="Set convert.dtype to bfloat16 or float32 in params.yaml.",
    )


def _open_mistral(source: Path, folder: Path, dtype: str) -> Source:
    config = checkpoint.read_config(source / checkpoint.CONFIG_FILE)
    tokenizer = convert_tokenizer(source / checkpoint.TOKENIZER_FILE, folder, vocab_size=config.vocab_size)
    weights = PickledWeights(weight_files(source), config)
    bos, eos = tokenizer.bos_id(), tokenizer.eos_id()
    original = {huggingface_name(name): name for name in weights.shapes}
    return Source(
        model_config(config, dtype=dtype, bos=bos, eos=eos),
        generation_config(bos=bos, eos=eos),
        {name: weights.shapes[old] for name, old in original.items()},
        lambda name: huggingface_tensor(original[name], weights.load(original[name]), config),
        lambda name: weights.where(original[name]),
        [],
    )


def _open_llama(source: Path, folder: Path, dtype: str) -> Source:
    config = llama.read_llama_config(source / llama.CONFIG_FILE)
    special, notes = convert_tokenizer_folder(source, folder, config)
    weights = llama.open_llama_weights(source, config)
    config = {name: value for name, value in config.items() if name != "dtype"} | _ids(config, special)
    config |= {"torch_dtype": dtype}
    generation = generation_config(bos=special.bos, eos=special.eos)
    path = source / "generation_config.json"
    if path.is_file():
        given = llama.read_json(path, "the model's generation settings")
        generation = given | _ids(given, special)
    return Source(
        config,
        generation,
        llama.llama_shapes(config),
        weights.load,
        lambda name: f"{weights.files[name]}, tensor {name}",
        notes,
    )


def _ids(config: dict[str, Any], special: SpecialTokens) -> dict[str, Any]:
    """The tokenizer's special ids, where they are not among the config's own: mlx-lm stops at these."""
    ids: dict[str, Any] = {}
    ends = config.get("eos_token_id")
    if special.eos not in (ends if isinstance(ends, list) else [ends]):
        ids["eos_token_id"] = special.eos
    if special.bos is not None:
        ids["bos_token_id"] = special.bos
    return ids


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
