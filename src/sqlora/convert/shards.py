"""Writes tensors that come one at a time to sharded safetensors files with an index, and reads them back to compare."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from sqlora.convert.lazy import LazyTensors
from sqlora.errors import SqloraError

SHARD_BYTES = 1_000_000_000
INDEX_FILE = "model.safetensors.index.json"
# "mlx" says that names and layouts are those of mlx-lm already.
_METADATA = {"format": "mlx"}
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint32: "U32"}
_AGAIN = "Run the same command again; if this comes back, check the disk and the memory of this machine."


@dataclass(frozen=True)
class Entry:
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Its size in a file."""
        return math.prod(self.shape) * self.dtype.itemsize


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
    entries: Mapping[str, Sequence[Entry]],
    load: Callable[[str], Sequence[torch.Tensor]],
    *,
    limit: int = SHARD_BYTES,
) -> None:
    """Write model-0000N-of-0000M.safetensors and their index, and compare every tensor in them with what was meant.

    One tensor of the source is in memory at a time. Finished files are synced, reopened and compared in a second
    thread, while the next is written; a bit that flips on the way is found, one that the disk loses later is not.

    Args:
        folder: exists.
        entries: name -> the tensors that it becomes, known beforehand because a file's header comes first.
        load: makes the tensors of a name, contiguous and as its entries say.
        limit: of a shard, in bytes.

    Raises:
        SqloraError: if a file does not hold what was written to it.
    """
    sizes = {name: sum(entry.nbytes for entry in parts) for name, parts in entries.items()}
    shards = plan_shards(sizes, limit=limit)
    place: dict[str, str] = {}
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending: Future[None] | None = None
        for number, names in enumerate(shards, 1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            checksums = _write(folder / file, {name: entries[name] for name in names}, load)
            place |= dict.fromkeys(checksums, file)
            if pending:
                pending.result()
            pending = pool.submit(check_shard, folder / file, checksums)
        if pending:
            pending.result()
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(place.items()))}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def check_shard(path: Path, checksums: Mapping[str, int]) -> None:
    """Sync a file and compare it: `checksums` has the CRC-32 of the bytes of every tensor that it should hold."""
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())
    tensors = LazyTensors([path], _AGAIN)
    wrong = sorted(set(checksums) ^ set(tensors.shapes))
    # One after the other, so that one tensor's memory is in use at a time.
    wrong += [name for name in tensors.shapes if name not in wrong and _checksum(tensors.load(name)) != checksums[name]]
    tensors.close()
    if wrong:
        raise SqloraError(
            path,
            found=f"other bytes than were written, in {len(wrong)} of {len(checksums)} tensors: {', '.join(wrong[:5])}",
            expected="each tensor as it was converted",
            next_step=_AGAIN,
        )


def _write(
    path: Path, entries: Mapping[str, Sequence[Entry]], load: Callable[[str], Sequence[torch.Tensor]]
) -> dict[str, int]:
    """Write one file; returns the CRC-32 of each tensor's bytes, taken before they are written."""
    try:
        return _write_open(path, entries, load)
    except OSError as error:
        error.filename = error.filename or str(path)  # a failed write does not say which file
        raise


def _write_open(
    path: Path, entries: Mapping[str, Sequence[Entry]], load: Callable[[str], Sequence[torch.Tensor]]
) -> dict[str, int]:
    header, start = _header([entry for parts in entries.values() for entry in parts])
    checksums: dict[str, int] = {}
    with open(path, "wb") as handle:
        handle.write(header)
        for name, parts in entries.items():
            for entry, tensor in zip(parts, load(name), strict=True):
                assert (tuple(tensor.shape), tensor.dtype) == (entry.shape, entry.dtype), entry
                checksums[entry.name] = _checksum(tensor)
                handle.seek(start[entry.name])
                handle.write(_bytes(tensor))
    return checksums


def _header(entries: Sequence[Entry]) -> tuple[bytes, dict[str, int]]:
    """The bytes before the tensors, as the safetensors library writes them, and where each tensor starts."""
    ordered = sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))
    fields: dict[str, object] = {"__metadata__": _METADATA}
    start: dict[str, int] = {}
    end = 0
    for entry in ordered:
        start[entry.name] = end
        end += entry.nbytes
        fields[entry.name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [start[entry.name], end],
        }
    text = json.dumps(fields, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: offset + len(header) for name, offset in start.items()}


def _checksum(tensor: torch.Tensor) -> int:
    return zlib.crc32(_bytes(tensor))


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
