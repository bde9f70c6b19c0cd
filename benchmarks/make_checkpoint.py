"""Writes a random checkpoint with the names, shapes and dtype (bfloat16) of Mistral-7B-v0.1: 14.48 GB as a tar.

    python benchmarks/make_checkpoint.py OUT.tar [--scale 0.1]

A scale below 1 leaves out layers and keeps every tensor's size. Values are normal, and repeat every 64 MB. Needs twice
the tar's size of disk while it runs.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tarfile
import tempfile
from pathlib import Path

import mistral_common
import torch

from sqlora.convert.checkpoint import MistralConfig, expected_shapes

CONFIG = {
    "dim": 4096,
    "n_layers": 32,
    "head_dim": 128,
    "hidden_dim": 14336,
    "n_heads": 32,
    "n_kv_heads": 8,
    "norm_eps": 1e-05,
    "sliding_window": 4096,
    "vocab_size": 32000,
}
WEIGHTS = "consolidated.00.pth"
_BLOCK = 32 * 2**20  # values


def main() -> None:
    """Write the tar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT.tar")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the 32 layers, above 0 and at most 1")
    arguments = parser.parse_args()
    if not 0 < arguments.scale <= 1:
        parser.error("--scale must be above 0 and at most 1")
    with tempfile.TemporaryDirectory(dir=arguments.out.absolute().parent) as name:
        size = write_checkpoint(Path(name), arguments.scale)
        with tarfile.open(arguments.out, "w") as tar:
            for file in sorted(Path(name).iterdir()):
                tar.add(file, arcname=f"mistral-7B-random/{file.name}")
                file.unlink()
    print(f"{arguments.out}: {size / 1e9:.2f} GB of weights")


def write_checkpoint(folder: Path, scale: float = 1.0) -> int:
    """Write consolidated.00.pth, params.json and tokenizer.model; returns the bytes of the weights.

    The file is laid out first, from tensors that are never touched and so take no memory, and its values are put in
    afterwards, which leaves the zip's own checksums wrong; torch does not look at them.
    """
    config = CONFIG | {"n_layers": max(1, round(CONFIG["n_layers"] * scale))}
    shapes = expected_shapes(MistralConfig(**config))
    path = folder / WEIGHTS
    with torch.serialization.skip_data():
        torch.save({name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}, path)
    generator = torch.Generator().manual_seed(0)
    block = (torch.randn(_BLOCK, generator=generator) * 0.02).to(torch.bfloat16).view(torch.uint8).numpy().data
    reader = torch._C.PyTorchFileReader(str(path))
    total = 0
    with open(path, "r+b") as handle:
        for number, shape in enumerate(shapes.values()):
            handle.seek(reader.get_record_offset(f"data/{number}"))
            left = 2 * math.prod(shape)
            total += left
            while left:
                left -= handle.write(block[: min(left, len(block))])
    (folder / "params.json").write_text(json.dumps(config))
    shutil.copyfile(Path(mistral_common.__file__).parent / "data/tokenizer.model.v1", folder / "tokenizer.model")
    return total


if __name__ == "__main__":
    main()
