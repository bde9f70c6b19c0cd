"""A decoder layer of the Llama architecture (Touvron et al., 2023) with its backward pass written out.

Automatic differentiation of mlx-lm's layer gives some 220 operations a layer, which a GPU works through faster than the
host can issue them, and it keeps whatever it meets. Written out there are a third of them: additions go into the
matrix products, nothing is computed for frozen weights, and what is kept for the way back is listed in `Kept`. A test
compares it with automatic differentiation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlora.mlx import mx, nn

from mlx_lm.tuner.lora import LoRALinear

from sqlora.train.attention import Attended, Mask, attend, attend_back, make_mask
from sqlora.train.cuda.kernels import kernels_for
from sqlora.train.exponential import sigmoid
from sqlora.train.linear import product, product_back


@dataclass(frozen=True)
class Factors:
    """The adapter of one projection: y + (x @ a) @ b; b holds lora.scale already.

    a: (inputs, rank); b: (rank, outputs); dropout: share of the inputs that are zeroed.
    """

    a: mx.array
    b: mx.array
    dropout: float


Adapters = Mapping[str, Factors]
Rows = Callable[[mx.array], mx.array]
"""(tokens, width) -> rows of it, (rows, width)."""
Gradients = dict[str, tuple[mx.array, mx.array]]


@dataclass(frozen=True)
class Frame:
    """What the layers share that see the same window. shape: rows and length of the batch; mask: of `make_mask`;
    window: in tokens, or None; turns: (tokens * heads,) each head's angle, for layers that turn all heads at once;
    spans: as in Ready, for kernels; attends: whether these compute the attention, all tokens in one row.
    """

    shape: tuple[int, int]
    mask: Mask
    window: int | None = None
    turns: mx.array | None = None
    spans: mx.array | None = None
    attends: bool = False


@dataclass(frozen=True)
class Kept:
    """What the way back needs of one layer; T = rows x length tokens.

    state: (T, width), the input; attended: what `attend_back` needs; mixed: (T, width), the attention's output; middle:
    (T, width), the state between both halves; gate, up: (T, inner); low: of each adapted projection x @ a and the
    dropout's mask. Where only some rows go on behind the attention, what comes behind it has these alone.
    """

    state: mx.array
    attended: Attended
    mixed: mx.array
    middle: mx.array
    gate: mx.array
    up: mx.array
    low: dict[str, tuple[mx.array, mx.array | None]]

    @property
    def masks(self) -> dict[str, mx.array | None]:
        """The dropout's, to repeat them."""
        return {name: mask for name, (_, mask) in self.low.items()}


class Layer:
    """Weights of one decoder layer, as mlx-lm holds them.

    Args:
        block: a mlx_lm.models.llama.TransformerBlock that `supports` accepts; its projections may be wrapped in LoRA
            layers, but the factors come with each call.
    """

    def __init__(self, block: Any) -> None:
        attention, mlp = block.self_attn, block.mlp
        modules = {name: attention[name] for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
        modules |= {name: mlp[name] for name in ("gate_proj", "up_proj", "down_proj")}
        self._linear = {name: _base(module) for name, module in modules.items()}
        self._norms = block.input_layernorm, block.post_attention_layernorm
        self._rope: Callable[[mx.array], mx.array] = attention.rope
        self._heads, self._kv_heads, self._scale = attention.n_heads, attention.n_kv_heads, attention.scale
        inner = self._linear["gate_proj"].weight.shape[0]
        self._kernels = kernels_for(self._norms[0].weight.dtype, [inner])

    def frame(
        self, shape: tuple[int, int], dtype: mx.Dtype, window: int | None, spans: mx.array | None = None
    ) -> Frame:
        """For batches of a shape; of examples one after another (spans) there are none here."""
        assert spans is None
        return Frame(shape, make_mask(shape[1], dtype, self._heads // self._kv_heads, window))

    def forward(
        self,
        state: mx.array,
        frame: Frame,
        adapters: Adapters,
        masks: Mapping[str, mx.array | None] | None = None,
        pick: Rows | None = None,
    ) -> tuple[mx.array, Kept]:
        """One layer.

        Args:
            state: (T, width); T is the product of the frame's rows and length.
            masks: the dropout's masks of an earlier call, to repeat it.
            pick: the rows that go on behind the attention; all of them if it is left out.

        Returns:
            (T, width) or what was picked of it, and what `backward` needs.
        """
        low: dict[str, tuple[mx.array, mx.array | None]] = {}

        def project(name: str, inputs: mx.array, add: mx.array | None = None) -> mx.array:
            result = product(inputs, self._linear[name], add)
            if name in adapters:
                factors = adapters[name]
                keep = masks[name] if masks is not None else _dropout(inputs, factors.dropout)
                small = (inputs if keep is None else inputs * keep) @ factors.a
                low[name] = small, keep
                result = mx.addmm(result, small, factors.b)
            return result

        rows, length = frame.shape
        inputs = normed(self._norms[0], state)
        query, key, value = (
            project(name, inputs).reshape(rows, length, heads, -1).transpose(0, 2, 1, 3)
            for name, heads in (("q_proj", self._heads), ("k_proj", self._kv_heads), ("v_proj", self._kv_heads))
        )
        query, key = self._rope(query), self._rope(key)
        mixed, attended = attend(query, key, value, frame.mask, self._scale)
        going, mixed = (pick(state), pick(mixed)) if pick else (state, mixed)
        middle = project("o_proj", mixed, going)
        inputs = normed(self._norms[1], middle)
        gate, up = project("gate_proj", inputs), project("up_proj", inputs)
        out = project("down_proj", self._gated(gate, up), middle)
        return out, Kept(state, attended, mixed, middle, gate, up, low)

    def backward(
        self,
        gradient: mx.array,
        kept: Kept,
        frame: Frame,
        adapters: Adapters,
        *,
        need_input: bool,
        spread: Rows | None = None,
    ) -> tuple[mx.array | None, Gradients]:
        """Gradients with respect to the input (None unless needed) and to the factors of each adapted projection.

        Args:
            gradient: of the output, picked rows of it if `forward` picked.
            spread: picked rows -> (T, width), zeros between them.
        """
        gradients: Gradients = {}
        # What is computed again depends on the gradient: a compiler would otherwise find that the forward pass computed
        # the same values, and keep those.
        before, between, gate, up = mx.depends([kept.state, kept.middle, kept.gate, kept.up], [gradient])

        def factors_back(name: str, gradient: mx.array, inputs: mx.array) -> mx.array:
            """Notes the factors' gradients; returns (T, rank), the gradient behind the first factor."""
            small, keep = kept.low[name]
            reduced = gradient @ adapters[name].b.T
            gradients[name] = (inputs if keep is None else inputs * keep).T @ reduced, small.T @ gradient
            return reduced

        def back(name: str, gradient: mx.array, inputs: mx.array, add: mx.array | None = None) -> mx.array:
            result = product_back(gradient, self._linear[name], add)
            if name in adapters:
                reduced, keep = factors_back(name, gradient, inputs), kept.low[name][1]
                if keep is None:
                    result = mx.addmm(result, reduced, adapters[name].a.T)
                else:
                    result = result + (reduced @ adapters[name].a.T) * keep
            return result

        inner = self._gated(gate, up) if "down_proj" in adapters else gradient
        d_inner = back("down_proj", gradient, inner)
        d_gate, d_up = _swiglu_back(d_inner, gate, up)
        adapted = "gate_proj" in adapters or "up_proj" in adapters
        inputs = normed(self._norms[1], between) if adapted else d_up
        d_normed = back("up_proj", d_up, inputs, back("gate_proj", d_gate, inputs))
        middle = gradient + normed_back(self._norms[1], between, d_normed)
        d_mixed = back("o_proj", middle, kept.mixed)
        if spread:
            middle, d_mixed = spread(middle), spread(d_mixed)
        d_query, d_key, d_value = attend_back(d_mixed, kept.attended, frame.mask, self._scale)
        # A rotation's way back does not depend on what was rotated.
        d_query, d_key = (
            mx.vjp(self._rope, [one], [change])[1][0]
            for one, change in ((kept.attended.query, d_query), (kept.attended.key, d_key))
        )
        rows = {"q_proj": d_query, "k_proj": d_key, "v_proj": d_value}
        inputs = normed(self._norms[0], before) if rows.keys() & adapters.keys() else d_query
        total: mx.array | None = None
        for name, heads in rows.items():
            flat = heads.transpose(0, 2, 1, 3).reshape(len(before), -1)
            if need_input:
                total = back(name, flat, inputs, total)
            elif name in adapters:
                factors_back(name, flat, inputs)
        return None if total is None else middle + normed_back(self._norms[0], before, total), gradients

    def _gated(self, gate: mx.array, up: mx.array) -> mx.array:
        return self._kernels.gated(gate, up) if self._kernels else swiglu(gate, up)


def normed(norm: nn.Module, state: mx.array) -> mx.array:
    """What an RMSNorm gives."""
    return mx.fast.rms_norm(state, norm.weight, norm.eps)


def normed_back(norm: nn.Module, state: mx.array, gradient: mx.array) -> mx.array:
    """The gradient of an RMSNorm's input."""
    # Without the weight MLX does not compute the weight's gradient, which nobody wants.
    return mx.vjp(lambda x: mx.fast.rms_norm(x, None, norm.eps), [state], [gradient * norm.weight])[1][0]


def _base(module: nn.Module) -> nn.Module:
    return module.linear if isinstance(module, LoRALinear) else module


def _dropout(inputs: mx.array, share: float) -> mx.array | None:
    if not share:
        return None
    return mx.random.bernoulli(1 - share, inputs.shape).astype(inputs.dtype) * (1 / (1 - share))


def _plain_swiglu(gate: mx.array, up: mx.array) -> mx.array:
    return gate * sigmoid(gate) * up


def _plain_swiglu_back(gradient: mx.array, gate: mx.array, up: mx.array) -> tuple[mx.array, mx.array]:
    """Gradients of gate and up."""
    share = sigmoid(gate)
    activated = gate * share
    return gradient * up * (share + activated * (1 - share)), gradient * activated


_compiled_swiglu = mx.compile(_plain_swiglu, shapeless=True)
_compiled_swiglu_back = mx.compile(_plain_swiglu_back, shapeless=True)


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up."""
    # One kernel instead of three on a GPU; on a CPU compiling calls the C++ compiler and gains nothing.
    return (_compiled_swiglu if mx.default_device().type == mx.gpu else _plain_swiglu)(gate, up)


def _swiglu_back(gradient: mx.array, gate: mx.array, up: mx.array) -> tuple[mx.array, mx.array]:
    run = _compiled_swiglu_back if mx.default_device().type == mx.gpu else _plain_swiglu_back
    return run(gradient, gate, up)
