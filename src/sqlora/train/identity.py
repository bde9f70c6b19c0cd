"""Which model this is, told by samples of its weights."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

from sqlora.errors import SqloraError

_SAMPLE = 4096  # bytes from the beginning, the middle and the end of each tensor


def model_identity(folder: Path) -> str:
    """A hash of config.json, of every tensor's name, type and shape, and of samples of every tensor.

    Whatever trains, converts or quantizes a model changes the tensors that it touches all over, so a sample of each
    tells two models apart. Hashing all of 14 GB would take longer than many a training run.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as file:
            try:
                (length,) = struct.unpack("<Q", file.read(8))
                header = file.read(length)
                tensors = json.loads(header)
            except (struct.error, ValueError, MemoryError, OverflowError):
                raise SqloraError(
                    path,
                    found="no header of a safetensors file",
                    expected="the weights that the convert stage wrote",
                    next_step="Delete the folder and run dvc repro convert.",
                ) from None
            digest.update(path.name.encode() + header)
            for name in sorted(tensors.keys() - {"__metadata__"}):
                start, end = tensors[name]["data_offsets"]
                for place in (start, (start + end) // 2, max(start, end - _SAMPLE)):
                    file.seek(8 + length + place)
                    digest.update(file.read(min(_SAMPLE, end - place)))
    return digest.hexdigest()
