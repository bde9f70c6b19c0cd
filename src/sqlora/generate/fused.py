"""The same forward pass in as few operations as there can be, for a GPU.

Issuing an operation takes the host longer than a GPU needs for most of them. So the projections that read the same
input are one product, a layer's operations are compiled, and every way between the list of tokens and the rows of
attention is one gathering with an index that all layers share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlora.mlx import mx, nn

import numpy as np

from sqlora.generate.cache import LayerCache, places_of
from sqlora.generate.packed import Step, additive, make_seen, to_device
from sqlora.llama import GROUPS, projections
from sqlora.merged import Kind, Merged, merge, product

# Up to so many new tokens a row, attention is plain products. MLX's fused attention prepares a cuDNN plan for every new
# shape, at a tenth of a second each; for longer prompts the memory that it saves is worth that.
PLAIN_ATTENTION = 512
# The device begins with so many layers while Python prepares the next ones.
AHEAD = 4

Weights = dict[str, mx.array]
Compiled = Callable[..., Any]


@dataclass(frozen=True)
class _Layer:
    """What one layer computes with; all but the cache's part is compiled, once for layers of the same kind."""

    before: Compiled
    after: Compiled
    norms: tuple[mx.array, mx.array]
    inputs: Weights
    output: Weights
    gates: Weights
    down: Weights
    slides: bool


class Fused:
    """A model whose layers are `mergeable`. Its modules' weights become views of the merged ones.

    Args:
        compiled: pays on a GPU.
    """

    def __init__(self, model: nn.Module, *, compiled: bool) -> None:
        inner = model.model
        first = inner.layers[0].self_attn
        self.layers, self.heads, self.vocabulary = len(inner.layers), first.n_kv_heads, model.args.vocab_size
        self._queries: int = first.n_heads
        self._embed, self._norm = inner.embed_tokens, inner.norm
        self._head = model.lm_head if "lm_head" in model else inner.embed_tokens.as_linear
        self._window: int | None = inner.sliding_window if inner.swa_idx is not None else None
        functions: dict[Any, tuple[Compiled, Compiled]] = {}
        self._layers = [_make(layer, functions, compiled=compiled) for layer in inner.layers]

    def __call__(self, caches: Sequence[LayerCache], step: Step, rows: int, *, fresh: bool) -> mx.array:
        """See Forward."""
        width = step.queries.shape[1]
        every = self._queries + 2 * self.heads
        # What a layer's first part gives is a list of heads: of each token those of queries, of keys, and of values.
        of = step.queries[:, None] * every
        asked = of + np.arange(self._queries)[:, None]
        keys = of + self._queries + np.arange(self.heads)[:, None]
        turned = np.repeat(step.slots[:, None], every, axis=1)
        turned[:, self._queries + self.heads :] = 0
        # What attention gives is a list as well: of each row of the step its heads, of each its tokens.
        back = (step.places[:, None] * self._queries + np.arange(self._queries)) * width + step.columns[:, None]
        cached = places_of(step.rows, step.slots, rows, self.heads, step.room)
        arrays = (
            step.tokens,
            turned.reshape(-1),
            cached,
            asked,
            back,
            step.last,
            step.start,
            *[keys, keys + self.heads] * fresh,
        )
        tokens, turns, places, queries, own, last, start, *new = to_device([a.astype(np.int32) for a in arrays])
        state = self._embed(tokens)
        full, sliding = (self._mask(start, width, step.room, one, state.dtype, fresh) for one in (None, self._window))
        for number, (layer, cache) in enumerate(zip(self._layers, caches, strict=True)):
            heads, entries = layer.before(state, layer.norms[0], layer.inputs, turns)
            cache.write(places, entries)
            seen = (heads[new[0]], heads[new[1]]) if fresh else cache.all()
            mask = sliding if layer.slides else full
            state = layer.after(
                state, heads, *seen, mask, queries, own, layer.output, layer.norms[1], layer.gates, layer.down
            )
            if number % AHEAD == AHEAD - 1 or number == self.layers - 1:
                # Prompts do not look at the caches; left for later, what is written there would keep all heads alive.
                written = [one.held for one in caches[number - number % AHEAD : number + 1]] if fresh else []
                mx.async_eval(state, *written)
        logits: mx.array = self._head(self._norm(state[last]))
        return logits

    def _mask(
        self, start: mx.array, width: int, room: int, window: int | None, dtype: mx.Dtype, fresh: bool
    ) -> mx.array | None:
        if fresh and width > PLAIN_ATTENTION and (window is None or window >= width):
            return None  # causal, which a kernel of its own knows
        if fresh:
            start = start[:1]  # all begin at their row's beginning
        return additive(make_seen(start, width, width if fresh else room, window), dtype)


def _make(layer: nn.Module, functions: dict[Any, tuple[Compiled, Compiled]], *, compiled: bool) -> _Layer:
    parts = [merge(projections(layer, group)) for group in GROUPS]
    norms = layer.input_layernorm, layer.post_attention_layernorm
    # Layers of the same kind share their functions, and what was compiled for them.
    kind = (*(part.kind for part in parts), *(norm.eps for norm in norms))
    if kind not in functions:
        made = _before(layer, parts[0], norms[0].eps), _after(layer, parts, norms[1].eps)
        functions[kind] = (mx.compile(made[0]), mx.compile(made[1])) if compiled else made
    before, after = functions[kind]
    inputs, output, gates, down = (part.weights for part in parts)
    return _Layer(before, after, (norms[0].weight, norms[1].weight), inputs, output, gates, down, layer.use_sliding)


def _before(layer: nn.Module, inputs: Merged, eps: float) -> Compiled:
    attention, kind = layer.self_attn, inputs.kind
    queries, heads, rope = attention.n_heads, attention.n_heads + 2 * attention.n_kv_heads, attention.rope

    def before(state: mx.array, norm: mx.array, weights: Weights, turns: mx.array) -> tuple[mx.array, mx.array]:
        """(count, width) -> every head of every token (count * heads, size), and of them keys and values."""
        projected = product(mx.fast.rms_norm(state, norm, eps), weights, kind)
        turned = rope(projected.reshape(state.shape[0] * heads, 1, 1, -1), offset=turns)
        size = turned.shape[-1]
        entries = turned.reshape(-1, heads, size)[:, queries:].reshape(-1, size)
        return turned.reshape(-1, size), entries

    return before


def _after(layer: nn.Module, parts: Sequence[Merged], eps: float) -> Compiled:
    scale: float = layer.self_attn.scale
    kinds: list[Kind] = [part.kind for part in parts[1:]]

    def after(
        state: mx.array,
        heads: mx.array,
        keys: mx.array,
        values: mx.array,
        mask: mx.array | None,
        queries: mx.array,
        back: mx.array,
        output: Weights,
        norm: mx.array,
        gates: Weights,
        down: Weights,
    ) -> mx.array:
        """The layer's output (count, width)."""
        mixed = _attend(heads[queries], keys, values, mask, scale)
        state = product(mixed[back].reshape(state.shape[0], -1), output, kinds[0], state)
        both = product(mx.fast.rms_norm(state, norm, eps), gates, kinds[1])
        gate, up = mx.split(both, 2, axis=1)
        return product(gate * mx.sigmoid(gate) * up, down, kinds[2], state)

    return after


def _attend(asked: mx.array, keys: mx.array, values: mx.array, mask: mx.array | None, scale: float) -> mx.array:
    """(rows, heads, new, size) -> (rows * heads * new, size)."""
    rows, _, new, size = asked.shape
    if mask is None or new > PLAIN_ATTENTION:
        named: mx.array | str = "causal" if mask is None else mask
        fast: mx.array = mx.fast.scaled_dot_product_attention(asked, keys, values, scale=scale, mask=named)
        return fast.reshape(-1, size)
    # The heads that share keys are rows of one matrix.
    groups = keys.shape[1]
    scores = asked.reshape(rows, groups, -1, size) @ keys.swapaxes(-1, -2)
    scores = scores.reshape(rows, groups, -1, new, keys.shape[2]) * scale + mask[:, :, None]
    weights = mx.softmax(scores, axis=-1, precise=True).reshape(rows, groups, -1, keys.shape[2])
    return (weights @ values).reshape(-1, size)
