"""Computes a step in which every row adds as many tokens as it has, without padding.

Matrices are applied to the tokens of all rows in one list; only attention, which costs little here, sees rows of equal
width. mlx-lm's own forward pass would pad all rows to the widest everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlora.mlx import mx, nn

import numpy as np
from numpy.typing import NDArray

from sqlora.generate.activations import attend, gated, make_mask, use_numpy
from sqlora.generate.cache import LayerCache, places_of

# The device begins with so many layers while Python prepares the next ones.
_AHEAD = 4


@dataclass(frozen=True)
class Step:
    """The tokens of a step and where they belong.

    tokens, slots, back: (count,) each, of a token: its id, its slot in its row's cache, and its place among all
    `queries`; cached: (count * heads of keys,), where its keys and values go in the caches.
    queries: (rows of the step, width), which token is a row's nth new one; last: (rows of the step,), which one is its
    last; start: (rows of the step,), the slot of its first. What is padding points at any token.
    """

    tokens: mx.array
    slots: mx.array
    back: mx.array
    cached: mx.array
    queries: mx.array
    last: mx.array
    start: mx.array


def pack(
    chunks: Sequence[Sequence[int]],
    rows: Sequence[int],
    start: NDArray[np.int32],
    width: int,
    count: int,
    heads: int,
    room: int,
) -> Step:
    """Lay out a step.

    Args:
        chunks: of each row of the step its new tokens; none where it has none.
        rows: of each row of the step its row in the caches; start: the slot of its first new token.
        width: the longest chunk's length or more; count: the number of all tokens or more.
        heads: of keys; room: slots of the caches.
    """
    tokens, places, columns = list[int](), list[int](), list[int]()
    queries = np.zeros((len(chunks), width), np.int32)
    last = np.zeros(len(chunks), np.int32)
    for place, chunk in enumerate(chunks):
        if chunk:
            queries[place, : len(chunk)] = range(len(tokens), len(tokens) + len(chunk))
            tokens += chunk
            places += [place] * len(chunk)
            columns += range(len(chunk))
            last[place] = len(tokens) - 1
    # Padding repeats the last token, so it writes what that one writes.
    extra = count - len(tokens)
    packed = np.array([column + column[-1:] * extra for column in (tokens, places, columns)], np.int32)
    rows_of = np.array(rows, np.int32)[packed[1]]
    slots = start[packed[1]] + packed[2]
    cached = places_of(rows_of, slots.astype(np.int32), heads, room)
    arrays = (packed[0], slots, packed[1] * width + packed[2], cached, queries, last, start)
    return Step(*(mx.array(array.astype(np.int32)) for array in arrays))


def run(model: nn.Module, caches: Sequence[LayerCache], step: Step, *, fresh: bool) -> mx.array:
    """The last layer's output (rows of the step, width of the model), normed, behind each row's last token.

    Args:
        model: mlx-lm's of the Llama architecture.
        caches: of its layers.
        fresh: whether nothing stands before the tokens, so that the caches need not be looked at; the step may have
            fewer rows than the caches then.
    """
    inner = model.model
    state = inner.embed_tokens(step.tokens)
    places = (step.start[:, None] + mx.arange(step.queries.shape[1])[None])[:, None, :, None]
    keys = mx.arange(step.queries.shape[1] if fresh else caches[0].slots)[None, None, None]
    full = keys <= places  # (rows, 1, width, slots): a token sees its row up to itself
    sliding = full & (keys > places - inner.sliding_window) if inner.swa_idx is not None else full
    full, sliding = make_mask(full, state.dtype), make_mask(sliding, state.dtype)
    # A prompt's padding is at the right, where no token of it looks; a kernel of its own knows that mask by its name.
    named: mx.array | str = full if not fresh or use_numpy(state.dtype) else "causal"
    for number, (layer, cache) in enumerate(zip(inner.layers, caches, strict=True)):
        mask = sliding if layer.use_sliding else named
        mixed = _attention(layer.self_attn, layer.input_layernorm(state), cache, step, mask, fresh)
        state = _added(state, layer.self_attn.o_proj, mixed)
        x = layer.post_attention_layernorm(state)
        state = _added(state, layer.mlp.down_proj, gated(layer.mlp.gate_proj(x), layer.mlp.up_proj(x)))
        if number % _AHEAD == _AHEAD - 1:
            mx.async_eval(state)
    normed: mx.array = inner.norm(state[step.last])
    return normed


def _attention(
    attention: nn.Module, x: mx.array, cache: LayerCache, step: Step, mask: mx.array | str, fresh: bool
) -> mx.array:
    """(count, width) -> (count, heads * width of a head), what goes into the output projection."""
    count = x.shape[0]
    # For the rotary part every token is a row of its own, with its own offset.
    queries = attention.q_proj(x).reshape(count, attention.n_heads, 1, -1)
    keys = attention.k_proj(x).reshape(count, attention.n_kv_heads, 1, -1)
    values = attention.v_proj(x).reshape(count, attention.n_kv_heads, -1)
    queries = attention.rope(queries, offset=step.slots)[:, :, 0]
    keys = attention.rope(keys, offset=step.slots)[:, :, 0]
    cache.write(step.cached, keys, values)
    seen_keys, seen_values = (_padded(keys, step), _padded(values, step)) if fresh else cache.all()
    seen = attend(_padded(queries, step), seen_keys, seen_values, attention.scale, mask)
    rows, heads, width, size = seen.shape
    return seen.transpose(0, 2, 1, 3).reshape(rows * width, heads * size)[step.back]


def _added(state: mx.array, linear: nn.Module, x: mx.array) -> mx.array:
    """state + linear(x); in one operation where the layer is a plain one."""
    if type(linear) is nn.Linear and "bias" not in linear:
        result: mx.array = mx.addmm(state, x, linear.weight.T)
    else:
        result = state + linear(x)
    return result


def _padded(packed: mx.array, step: Step) -> mx.array:
    """(tokens, heads, width) -> (rows of the step, heads, longest, width)."""
    return packed[step.queries].transpose(0, 2, 1, 3)
