"""Writes tensors that come one at a time to sharded safetensors files with an index."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

SHARD_BYTES = 1_000_000_000
INDEX_FILE = "model.safetensors.index.json"
# "mlx" says that names and layouts are those of mlx-lm already.
_METADATA = {"format": "mlx"}


def plan_shards(sizes: Mapping[str, int], *, limit: int = SHARD_BYTES) -> list[list[str]]:
    """Group names in their order so that each group has at most `limit` bytes, or is one larger tensor."""
    shards: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not shards or size > room:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    return shards


def write_shards(
    folder: Path,
    sizes: Mapping[str, int],
    load: Callable[[str], torch.Tensor],
    *,
    limit: int = SHARD_BYTES,
) -> None:
    """Write model-0000N-of-0000M.safetensors and their index.

    One shard is in memory at a time.

    Args:
        folder: exists.
        sizes: name -> bytes of each tensor, known beforehand because every file is named by the number of files.
        load: makes the tensor of a name, contiguous and of that many bytes.
        limit: of a shard, in bytes.
    """
    shards = plan_shards(sizes, limit=limit)
    place = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for name in names:
            tensors[name] = load(name)
            place[name] = file
        save_file(tensors, folder / file, metadata=_METADATA)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(place.items()))}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for file in set(place.values()):  # safetensors makes files that only their owner can read
        shutil.copymode(folder / INDEX_FILE, folder / file)
