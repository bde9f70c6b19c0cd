"""Turns a Mistral-format folder into a folder that mlx-lm, and whatever reads Hugging Face's layout, loads as it is."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from sqlora.convert.checkpoint import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    expected_shapes,
    open_weights,
    read_config,
)
from sqlora.convert.huggingface import generation_config, huggingface_name, huggingface_tensor, model_config
from sqlora.convert.shards import SHARD_BYTES, write_shards
from sqlora.convert.tokenizer import convert_tokenizer
from sqlora.errors import SqloraError
from sqlora.progress import progress

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def convert_model(source: Path, folder: Path, *, dtype: str, shard_bytes: int = SHARD_BYTES) -> None:
    """Write config.json, generation_config.json, tokenizer files and weights of `source` into `folder`.

    Args:
        source: holds consolidated.00.pth, params.json and tokenizer.model.
        folder: exists and is empty.
        dtype: a key of DTYPES, of the written weights.
        shard_bytes: size of a weights file, and so roughly the memory needed.

    Raises:
        SqloraError: if one of the three files is missing or damaged, if they do not fit each other, or if a weight
            is not finite, be it only in `dtype`.
    """
    config = read_config(source / CONFIG_FILE)
    tokenizer = convert_tokenizer(source / TOKENIZER_FILE, folder, vocab_size=config.vocab_size)
    weights = open_weights(source / WEIGHTS_FILE, config)

    bos, eos = tokenizer.bos_id(), tokenizer.eos_id()
    _write_json(folder / "config.json", model_config(config, dtype=dtype, bos=bos, eos=eos))
    _write_json(folder / "generation_config.json", generation_config(bos=bos, eos=eos))

    target = DTYPES[dtype]
    original = {huggingface_name(name): name for name in weights}
    shapes = expected_shapes(config)
    sizes = {name: math.prod(shapes[old]) * target.itemsize for name, old in original.items()}

    with progress("convert", total=sum(sizes.values()), unit="B", bytes_=True) as bar:

        def load(name: str) -> torch.Tensor:
            old = original[name]
            tensor = cast_weight(weights[old], target, f"{source / WEIGHTS_FILE}, tensor {old}")
            bar.update(sizes[name])
            return huggingface_tensor(old, tensor, config)

        write_shards(folder, sizes, load, limit=shard_bytes)


def cast_weight(tensor: torch.Tensor, dtype: torch.dtype, where: str) -> torch.Tensor:
    """A contiguous copy in `dtype`; raises SqloraError for NaN, infinity and what `dtype` cannot hold."""
    # copy=True: without it the result could be the file's own mapped memory.
    cast = tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
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


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
