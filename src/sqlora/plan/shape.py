"""The sizes of a base model that decide about memory, from its config.json or from what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlora.count import projection_shapes
from sqlora.errors import SqloraError

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_TURNED = ("default", "linear", "llama3")  # kinds of rotations that mlx-lm makes an nn.RoPE or a Llama3RoPE

# config.json of models that profiles name, so that a run can be planned before its model is downloaded.
KNOWN: dict[str, dict[str, Any]] = {
    "demo": {
        "hidden_size": 320,
        "intermediate_size": 864,
        "num_hidden_layers": 8,
        "num_attention_heads": 10,
        "num_key_value_heads": 5,
        "head_dim": 32,
        "vocab_size": 4096,
        "tie_word_embeddings": False,
    },
    "mistral-7b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
    "smollm2-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
}


@dataclass(frozen=True)
class Shape:
    """A model of the Llama architecture.

    queries, keys: width of all query heads and of all key heads together; inner: of the MLP; tied: whether the
    embedding is the output matrix; itemsize: bytes of a computed number; bits: of a quantized weight, None where
    weights are plain; group_size: weights that share a scale and a bias.
    written: whether the engine's written-out layers take it (sqlora.train.layer.supports): no bias vectors; turned:
    whether the CUDA kernels know its rotation (sqlora.train.cuda.layers).
    """

    layers: int
    hidden: int
    queries: int
    keys: int
    heads: int
    inner: int
    vocab: int
    tied: bool
    itemsize: int
    bits: int | None
    group_size: int
    written: bool
    turned: bool
    projections: Mapping[str, tuple[int, int]]

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Of a weight (rows, columns); quantized if its rows are whole groups, as convert and mlx-lm do."""
        if self.bits is None or columns % self.group_size:
            return rows * columns * self.itemsize
        groups = columns // self.group_size
        return rows * columns * self.bits // 8 + 2 * rows * groups * self.itemsize

    @property
    def layer_bytes(self) -> int:
        """Weights of one layer, its two norms included."""
        matrices = sum(self.matrix_bytes(outputs, inputs) for inputs, outputs in self.projections.values())
        return matrices + 2 * self.hidden * self.itemsize

    @property
    def embedding_bytes(self) -> int:
        """Of the embedding, and of the output matrix where it is one of its own."""
        return self.matrix_bytes(self.vocab, self.hidden)

    @property
    def model_bytes(self) -> int:
        """All weights."""
        matrices = 1 if self.tied else 2
        return self.layers * self.layer_bytes + matrices * self.embedding_bytes + self.hidden * self.itemsize

    def converted(self, dtype: str, quantize: int | None, group_size: int) -> Shape:
        """The same model as another `convert` would write it."""
        return replace(self, itemsize=BYTES[dtype], bits=quantize, group_size=group_size)


def shape_of(config: Mapping[str, Any]) -> Shape:
    """From the config.json of a converted model.

    Raises:
        SqloraError: listing the keys that the config lacks; another number type than a conversion writes.
    """
    projections = projection_shapes(config)
    dtype = config.get("torch_dtype", "bfloat16")
    if dtype not in BYTES:
        raise SqloraError(
            "config.json of the model",
            found=f"torch_dtype {dtype}",
            expected=f"one of {', '.join(BYTES)}",
            next_step="Plan for a model that dvc repro convert has written.",
        )
    quantization = config.get("quantization") or {}
    return Shape(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        queries=projections["q_proj"][1],
        keys=projections["k_proj"][1],
        heads=config["num_attention_heads"],
        inner=config["intermediate_size"],
        vocab=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", True)),
        itemsize=BYTES[dtype],
        bits=quantization.get("bits"),
        group_size=quantization.get("group_size", 64),
        written=not (config.get("attention_bias") or config.get("mlp_bias")),
        turned=not config.get("rope_traditional") and _kind_of(config.get("rope_scaling")) in _TURNED,
        projections=projections,
    )


def _kind_of(scaling: Mapping[str, Any] | None) -> str:
    """A rotation's, as mlx-lm reads it."""
    return str((scaling or {}).get("type") or (scaling or {}).get("rope_type", "default"))


def known_shape(name: str) -> Shape:
    """By a name of KNOWN, in float32 and not quantized.

    Raises:
        SqloraError: naming the known ones.
    """
    if name not in KNOWN:
        raise SqloraError(
            "--shape",
            found=name,
            expected=f"one of {', '.join(KNOWN)}",
            next_step="Name one of these, or run dvc repro convert first and plan with --model artifacts/model.",
        )
    return shape_of(KNOWN[name] | {"torch_dtype": "float32"})


def name_of(source: str | tuple[str, ...]) -> str | None:
    """The known model that a model.source names, or None."""
    for text in (source,) if isinstance(source, str) else source:
        for name in KNOWN:
            if text == name or name in text.lower().replace("_", "-"):
                return name
    return None
