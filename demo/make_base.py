"""Makes demo/base.tar, the embedded base model, from WikiSQL's train part and synthetic text: one command, one GPU.

    python demo/make_base.py --wikisql path/to/wikisql.tar.bz2 --out demo/base.tar

Writes beside the tar a JSON file of the same name with what was measured (for MODEL_CARD.md).
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import platform
import tarfile
import tempfile
from pathlib import Path

import torch
from corpus import sample_texts
from examples import Pool
from model import Shape, Transformer
from pretrain import Budget, pretrain
from tokenizer import train_tokenizer

FOLDER = "sqlora-demo-base-v0.1"
PARTS = ("train.jsonl", "train.tables.jsonl", "dev.jsonl", "dev.tables.jsonl")


def main() -> None:
    """Parse arguments, train, pack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wikisql", type=Path, required=True, help="a tarball in WikiSQL's official layout")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=float, default=2.5e9)
    parser.add_argument("--workers", type=int, default=13)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)  # not after twenty minutes of training
    shape, budget = Shape(), Budget(tokens=int(arguments.tokens), workers=arguments.workers)
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        read_parts(arguments.wikisql, scratch)
        tokenizer = scratch / "tokenizer.model"
        texts = sample_texts(budget.seed, Pool.from_wikisql(scratch), 100_000)
        train_tokenizer(texts, tokenizer, vocabulary=shape.vocab_size)
        model, measured = pretrain(scratch, tokenizer, scratch, shape, budget)
        pack(model, tokenizer, arguments.out)
    measured |= {
        "parameters": sum(p.numel() for p in model.parameters()),
        "shape": dataclasses.asdict(shape),
        "budget": dataclasses.asdict(budget),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor(),
    }
    arguments.out.with_suffix(".json").write_text(json.dumps(measured, indent=1) + "\n")
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes", flush=True)


def read_parts(archive: Path, target: Path) -> None:
    """Copy the train and dev parts (never the test part) out of the tarball."""
    with tarfile.open(archive) as tar:
        for name in PARTS:
            with tar.extractfile(f"data/{name}") as source:  # type: ignore[union-attr]
                (target / name).write_bytes(source.read())


def pack(model: Transformer, tokenizer: Path, target: Path) -> None:
    """Write the three files of Mistral's format, weights in bfloat16, with fixed dates and owners."""
    weights = io.BytesIO()
    torch.save({name: value.detach().to("cpu", torch.bfloat16) for name, value in model.state_dict().items()}, weights)
    params = json.dumps(dataclasses.asdict(model.shape), indent=1).encode()
    members = {
        "params.json": params,
        "tokenizer.model": tokenizer.read_bytes(),
        "consolidated.00.pth": weights.getvalue(),
    }
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size, member.mode = len(content), 0o644
            tar.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    main()
