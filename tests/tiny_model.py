"""Makes tiny random models in Mistral's format, and computes their logits without sqlora or MLX, for comparison."""

from __future__ import annotations

import functools
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from torch.nn.functional import silu

FILES = ("consolidated.00.pth", "params.json", "tokenizer.model")

# head_dim is not dim / n_heads and two query heads share a key head: what is easily got wrong shows.
CONFIG: dict[str, Any] = {
    "dim": 48,
    "n_layers": 3,
    "head_dim": 16,
    "hidden_dim": 80,
    "n_heads": 4,
    "n_kv_heads": 2,
    "norm_eps": 1e-5,
    "vocab_size": 512,
}


@functools.lru_cache
def tokenizer_bytes(vocab_size: int = 512) -> bytes:
    """A sentencepiece model of the same kind as Mistral's, trained here on generated text."""
    generator = random.Random(0)
    syllables = [
        "ta",
        "ble",
        "co",
        "lumn",
        "se",
        "lect",
        "from",
        "where",
        "count",
        "no",
        "tes",
        "SEL",
        "ECT",
        "Q:",
        "A:",
    ]
    lines = [
        " ".join("".join(generator.choices(syllables, k=generator.randint(1, 4))) for _ in range(12))
        + f" {generator.randrange(10**6)} = '{generator.choice('abcdefgh')}', (x/y) > 1-{generator.randrange(999)}-2"
        for _ in range(300)
    ]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape, written from the published architecture and not from sqlora's own list."""
    dim, wide = config["dim"], config["hidden_dim"]
    queries, keys = config["n_heads"] * config["head_dim"], config["n_kv_heads"] * config["head_dim"]
    result: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (config["vocab_size"], dim),
        "norm.weight": (dim,),
        "output.weight": (config["vocab_size"], dim),
    }
    for n in range(config["n_layers"]):
        result[f"layers.{n}.attention.wq.weight"] = (queries, dim)
        result[f"layers.{n}.attention.wk.weight"] = (keys, dim)
        result[f"layers.{n}.attention.wv.weight"] = (keys, dim)
        result[f"layers.{n}.attention.wo.weight"] = (dim, queries)
        result[f"layers.{n}.feed_forward.w1.weight"] = (wide, dim)
        result[f"layers.{n}.feed_forward.w2.weight"] = (dim, wide)
        result[f"layers.{n}.feed_forward.w3.weight"] = (wide, dim)
        result[f"layers.{n}.attention_norm.weight"] = (dim,)
        result[f"layers.{n}.ffn_norm.weight"] = (dim,)
    return result


def random_weights(
    config: dict[str, Any], *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Weights large enough that attention is far from uniform, so that an error in the rotary part shows."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(shape, generator=generator) * 0.25
            if len(shape) == 2
            else 1 + torch.randn(shape, generator=generator) * 0.2
        ).to(dtype)
        for name, shape in shapes(config).items()
    }


def write_checkpoint(
    folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> dict[str, torch.Tensor]:
    """Write the three files of a Mistral-format model; `changes` go into params.json. Returns the weights."""
    config = CONFIG | changes
    weights = random_weights(config, seed=seed, dtype=dtype)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(weights, folder / "consolidated.00.pth")
    (folder / "params.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes(tokenizer_bytes(config["vocab_size"]))
    return weights


def write_tar(path: Path, folder: Path, *, names: tuple[str, ...] = FILES) -> Path:
    """Pack files of a folder as Mistral does: inside one folder of the tar."""
    with tarfile.open(path, "w" if path.suffix == ".tar" else f"w:{path.suffix[1:]}") as tar:
        for name in names:
            tar.add(folder / name, arcname=f"tiny-v0.1/{name}")
    return path


@torch.no_grad()
def reference_logits(config: dict[str, Any], weights: dict[str, torch.Tensor], tokens: list[int]) -> torch.Tensor:
    """Logits (tokens, vocabulary) in float64, with rotary pairs as complex numbers, as Mistral published the model."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    length, head = len(tokens), config["head_dim"]
    theta = config.get("rope_theta", 10000.0)
    rates = theta ** (-torch.arange(0, head, 2).double() / head)
    turn = torch.polar(torch.ones(length, head // 2).double(), torch.outer(torch.arange(length).double(), rates))
    window = config.get("sliding_window") or length
    ahead = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    visible = (ahead >= 0) & (ahead < window)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + config["norm_eps"]) * w[name]

    def rotate(x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], head // 2, 2).contiguous())
        return torch.view_as_real(pairs * turn[:, None]).reshape(x.shape)

    h = w["tok_embeddings.weight"][tokens]
    for n in range(config["n_layers"]):
        attention = f"layers.{n}.attention."
        x = norm(h, f"layers.{n}.attention_norm.weight")
        q = rotate((x @ w[attention + "wq.weight"].T).reshape(length, config["n_heads"], head))
        k = rotate((x @ w[attention + "wk.weight"].T).reshape(length, config["n_kv_heads"], head))
        v = (x @ w[attention + "wv.weight"].T).reshape(length, config["n_kv_heads"], head)
        outputs = []
        for i in range(config["n_heads"]):
            shared = i * config["n_kv_heads"] // config["n_heads"]
            scores = (q[:, i] @ k[:, shared].T / head**0.5).masked_fill(~visible, -torch.inf)
            outputs.append(scores.softmax(-1) @ v[:, shared])
        h = h + torch.cat(outputs, -1) @ w[attention + "wo.weight"].T
        feed = f"layers.{n}.feed_forward."
        x = norm(h, f"layers.{n}.ffn_norm.weight")
        h = h + (silu(x @ w[feed + "w1.weight"].T) * (x @ w[feed + "w3.weight"].T)) @ w[feed + "w2.weight"].T
    return norm(h, "norm.weight") @ w["output.weight"].T
