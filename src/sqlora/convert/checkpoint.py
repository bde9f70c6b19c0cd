"""Reads params.json of a Mistral-format model, which comes from strangers and so is checked."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from sqlora.errors import SqloraError

CONFIG_FILE = "params.json"
TOKENIZER_FILE = "tokenizer.model"

_SIZES = ("dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "vocab_size")
_LARGEST_SIZE = 10_000_000  # far above any model; stops a hostile file from asking for endless lists
_MOST_LISTED = 10


@dataclass(frozen=True)
class MistralConfig:
    """A model's shape, as params.json names it.

    dim: width of the residual stream; hidden_dim: of the feed-forward layers; head_dim: of one attention head, which
    need not be dim / n_heads; n_kv_heads: key and value heads, each shared by n_heads / n_kv_heads query heads.
    sliding_window: how many tokens back a token sees, or None for all of them.
    """

    dim: int
    n_layers: int
    head_dim: int
    hidden_dim: int
    n_heads: int
    n_kv_heads: int
    norm_eps: float
    vocab_size: int
    rope_theta: float = 10000.0
    sliding_window: int | None = None


def read_config(path: Path) -> MistralConfig:
    """Read params.json; raises SqloraError that lists every missing, unknown and unusable field."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else f"no readable JSON ({error})"
        raise _bad_config(path, found) from None
    if not isinstance(fields, dict):
        raise _bad_config(path, f"a JSON {type(fields).__name__}")

    problems = []
    for name in _SIZES:
        if name not in fields:
            problems.append(f"{name} is missing")
        elif not _is_size(fields[name]):
            problems.append(f"{name} is {fields[name]!r}, not a whole number from 1 to {_LARGEST_SIZE}")
    for name, default in (("norm_eps", 0), ("rope_theta", 1)):
        value = fields.get(name, default)
        if not (_is_number(value) and 0 < value < math.inf):
            problems.append(f"{name} is {value!r}, not a number above 0" if name in fields else f"{name} is missing")
    if fields.get("sliding_window") is not None and not _is_size(fields["sliding_window"]):
        problems.append(f"sliding_window is {fields['sliding_window']!r}, neither null nor a whole number above 0")
    # A field that is not understood may change what the model computes (experts, scaled rotary embedding).
    known = MistralConfig.__dataclass_fields__
    problems += [f"{name} is not a field of this architecture" for name, value in fields.items() if name not in known]
    if not problems:
        if fields["n_heads"] % fields["n_kv_heads"]:
            problems.append(f"n_heads {fields['n_heads']} is no multiple of n_kv_heads {fields['n_kv_heads']}")
        if fields["head_dim"] % 2:
            problems.append(f"head_dim {fields['head_dim']} is odd, so rotary pairs are impossible")
    if problems:
        raise _bad_config(path, listing(problems))
    return MistralConfig(**fields)


def expected_shapes(config: MistralConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the architecture, in the order in which a forward pass uses them."""
    dim, queries, keys = config.dim, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "attention_norm": (dim,),
        "attention.wq": (queries, dim),
        "attention.wk": (keys, dim),
        "attention.wv": (keys, dim),
        "attention.wo": (dim, queries),
        "ffn_norm": (dim,),
        "feed_forward.w1": (config.hidden_dim, dim),
        "feed_forward.w2": (dim, config.hidden_dim),
        "feed_forward.w3": (config.hidden_dim, dim),
    }
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (config.vocab_size, dim)}
    for index in range(config.n_layers):
        shapes |= {f"layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return shapes | {"norm.weight": (dim,), "output.weight": (config.vocab_size, dim)}


def listing(problems: list[str]) -> str:
    """All problems in one sentence, the first ten of them in words."""
    more = len(problems) - _MOST_LISTED
    shown = "; ".join(problems[:_MOST_LISTED])
    count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
    return f"{count}: {shown}" + (f"; and {more} more" if more > 0 else "")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LARGEST_SIZE


def _bad_config(path: Path, found: str) -> SqloraError:
    return SqloraError(
        path,
        found=found,
        expected=f"a Mistral-format params.json with {', '.join(_SIZES)}, norm_eps and at most rope_theta and "
        "sliding_window besides",
        next_step="Use the params.json that came with the weights.",
    )
