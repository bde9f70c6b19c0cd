"""A model's forward pass over the packed tokens of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sqlora.mlx import mx, nn

from sqlora.generate.activations import attend, gated, make_mask, use_numpy
from sqlora.generate.cache import LayerCache, places_of
from sqlora.generate.fused import AHEAD, Fused
from sqlora.generate.packed import Step, make_seen, to_device
from sqlora.llama import mergeable


class Forward(Protocol):
    """What an engine needs of a model.

    layers, heads, vocabulary: how many layers, heads of keys in each, and logits it has.
    """

    layers: int
    heads: int
    vocabulary: int

    def __call__(self, caches: Sequence[LayerCache], step: Step, rows: int, *, fresh: bool) -> mx.array:
        """Logits (rows of the step, vocabulary) behind each row's last token; not computed yet.

        Args:
            caches: of the layers, for so many rows.
            fresh: whether nothing stands before the tokens, so that the caches need not be looked at; the step may have
                fewer rows than the caches then.
        """


def make_forward(model: nn.Module) -> Forward:
    """The fused pass on a GPU, for models that it knows; otherwise mlx-lm's modules one by one."""
    if mx.default_device() == mx.Device(mx.gpu) and mergeable(model.layers):
        return Fused(model, compiled=True)
    return Modules(model)


class Modules:
    """Calls the modules of a model of mlx-lm, of the Llama architecture, with whatever adapters they have."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._head = model.lm_head if "lm_head" in model else model.model.embed_tokens.as_linear
        self.layers = len(model.model.layers)
        self.heads: int = model.model.layers[0].self_attn.n_kv_heads
        self.vocabulary: int = model.args.vocab_size

    def __call__(self, caches: Sequence[LayerCache], step: Step, rows: int, *, fresh: bool) -> mx.array:
        """See Forward."""
        inner = self._model.model
        width = step.queries.shape[1]
        places = places_of(step.rows, step.slots, rows, self.heads, step.room)
        own = step.places * width + step.columns
        arrays = to_device((step.tokens, step.slots, places, step.queries, own, step.last, step.start))
        tokens, slots, cached, queries, back, last, start = arrays
        state = inner.embed_tokens(tokens)
        window = inner.sliding_window if inner.swa_idx is not None else None
        full, sliding = (
            make_mask(make_seen(start, width, width if fresh else step.room, one), state.dtype)
            for one in (None, window)
        )
        # A prompt's padding is at the right, where no token of it looks; a kernel of its own knows that mask by name.
        named: mx.array | str = full if not fresh or use_numpy(state.dtype) else "causal"
        for number, (layer, cache) in enumerate(zip(inner.layers, caches, strict=True)):
            attention, count = layer.self_attn, state.shape[0]
            x = layer.input_layernorm(state)
            # For the rotary part every token is a row of its own, with its own offset.
            asked = attention.rope(attention.q_proj(x).reshape(count, attention.n_heads, 1, -1), offset=slots)[:, :, 0]
            keys = attention.rope(attention.k_proj(x).reshape(count, self.heads, 1, -1), offset=slots)[:, :, 0]
            values = attention.v_proj(x).reshape(count, self.heads, -1)
            cache.write(cached, mx.concatenate([keys, values], axis=1).reshape(-1, keys.shape[-1]))
            seen = (_padded(keys, queries), _padded(values, queries)) if fresh else cache.all()
            mask = sliding if layer.use_sliding else named
            mixed = attend(_padded(asked, queries), *seen, attention.scale, mask).transpose(0, 2, 1, 3)
            state = _added(state, attention.o_proj, mixed.reshape(-1, mixed.shape[2] * mixed.shape[3])[back])
            x = layer.post_attention_layernorm(state)
            state = _added(state, layer.mlp.down_proj, gated(layer.mlp.gate_proj(x), layer.mlp.up_proj(x)))
            if number % AHEAD == AHEAD - 1:
                mx.async_eval(state)
        logits: mx.array = self._head(inner.norm(state[last]))
        return logits


def _added(state: mx.array, linear: nn.Module, x: mx.array) -> mx.array:
    """state + linear(x); in one operation where the layer is a plain one."""
    if type(linear) is nn.Linear and "bias" not in linear:
        result: mx.array = mx.addmm(state, x, linear.weight.T)
    else:
        result = state + linear(x)
    return result


def _padded(packed: mx.array, queries: mx.array) -> mx.array:
    """(tokens, heads, width) -> (rows of the step, heads, longest, width)."""
    return packed[queries].transpose(0, 2, 1, 3)
