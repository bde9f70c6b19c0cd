"""The layers of sqlora.train.layer in fewer operations, for a GPU that waits for its host.

The projections that read the same input are one product (sqlora.merged), on the way back too; so are their adapters,
whose second factors stand in one matrix with zeros between them. All heads are turned at once, and the adapters of all
layers are taken out of the vector at once, and so are their gradients put back. On a CUDA device kernels of
sqlora's own do what stands between the products (sqlora.train.cuda).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlora.mlx import mx

import numpy as np
from numpy.typing import NDArray

from sqlora.llama import GROUPS, mergeable, projections
from sqlora.merged import merge, product, product_back
from sqlora.params.lora import LoraParams
from sqlora.train.attention import PLAIN_ATTENTION, Attended, attend, attend_back, make_mask
from sqlora.train.cuda.kernels import Kernels
from sqlora.train.cuda.layers import layer_kernels, spans_of, will_attend
from sqlora.train.layer import Frame, Rows, normed, normed_back, swiglu
from sqlora.train.layout import Layout

Adapters = dict[int, tuple[mx.array, mx.array]]
"""By the group's place in GROUPS (rank, inputs) and (rank, outputs) of its adapter, the first turned, the second with
the scale; what is not adapted is not there."""
Gradients = dict[int, tuple[mx.array, ...]]
"""Of the same, or of both in one vector."""


@dataclass(frozen=True)
class Kept:
    """What the way back needs of a layer; T = rows x length tokens.

    state: (T, width), the input; attended: what `attend_back` needs; mixed: (T, width), the attention's output; middle:
    (T, width), the state between both halves; gates: (T, 2 * inner); low: of each adapted group what is behind its
    first factor (T, rank). Where only some rows go on behind the attention, what comes behind it has these alone.
    """

    state: mx.array
    attended: Attended
    mixed: mx.array
    middle: mx.array
    gates: mx.array
    low: dict[int, mx.array]

    @property
    def masks(self) -> dict[str, mx.array | None]:
        """Of dropout, which these layers have not."""
        return {}


class FusedLayer:
    """A layer that is `mergeable`; its modules' weights become views of the merged ones."""

    def __init__(self, block: Any) -> None:
        attention = block.self_attn
        self._parts = [merge(projections(block, group), adapters=False) for group in GROUPS]
        self._norms = block.input_layernorm, block.post_attention_layernorm
        self._rope, self._scale = attention.rope, attention.scale
        self._queries, self._keys = attention.n_heads, attention.n_kv_heads
        self._kernels = layer_kernels(*_kind(block))

    @property
    def heads(self) -> int:
        """Of queries, keys and values."""
        return int(self._queries + 2 * self._keys)

    @property
    def attends(self) -> bool:
        """Whether by kernels, which take examples one after another."""
        return self._kernels is not None and self._kernels.attends

    def frame(
        self, shape: tuple[int, int], dtype: mx.Dtype, window: int | None, spans: mx.array | None = None
    ) -> Frame:
        """For batches of a shape.

        Args:
            spans: as in Ready, for examples one after another, which only kernels that attend take.
        """
        assert spans is None or self.attends
        if self._kernels:
            long = spans is None and shape[1] > PLAIN_ATTENTION
            mask = make_mask(shape[1], dtype, 1, window) if long else None
            attends = self.attends and not long
            each = spans_of(*shape) if spans is None else spans
            return Frame((1, math.prod(shape)) if attends else shape, mask, window, spans=each, attends=attends)
        turns = np.repeat(np.arange(shape[1], dtype=np.int32)[:, None], self.heads, axis=1)
        turns[:, self._queries + self._keys :] = 0
        mask = make_mask(shape[1], dtype, self._queries // self._keys, window)
        return Frame(shape, mask, window, mx.array(np.tile(turns.reshape(-1), shape[0])))

    def forward(
        self,
        state: mx.array,
        frame: Frame,
        adapters: Adapters,
        masks: Mapping[str, mx.array | None] | None = None,
        pick: Rows | None = None,
    ) -> tuple[mx.array, Kept]:
        """(T, width) -> the same, or what `pick` takes of it, and what `backward` needs."""
        low: dict[int, mx.array] = {}

        def project(group: int, inputs: mx.array, add: mx.array | None = None) -> mx.array:
            part = self._parts[group]
            result = product(inputs, part.weights, part.kind, add)
            if group in adapters:
                low[group] = inputs @ adapters[group][0].T
                result = mx.addmm(result, low[group], adapters[group][1])
            return result

        if self._kernels and self._kernels_adapt(adapters, frame):
            norm, (first, second), part = self._norms[0], adapters[0], self._parts[0]
            inputs, low[0] = self._kernels.norm_low(state, norm.weight, first, norm.eps)
            heads = product(inputs, part.weights, part.kind)
            query, key, value = self._turn(heads, frame, (low[0], second))
        else:
            query, key, value = self._turned(project(0, normed(self._norms[0], state)), frame)
        spans = frame.spans if frame.attends else None
        mixed, attended = attend(query, key, value, frame.mask, self._scale, self._kernels, frame.window, spans)
        going, mixed = (pick(state), pick(mixed)) if pick else (state, mixed)
        middle = project(1, mixed, going)
        gates = project(2, normed(self._norms[1], middle))
        out = project(3, self._gated(gates), middle)
        return out, Kept(state, attended, mixed, middle, gates, low)

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
        """Gradients with respect to the input (None unless needed) and to the adapters; as Layer.backward."""
        gradients: Gradients = {}
        # As in Layer.backward: what is computed again is not to be kept from the forward pass.
        before, between, gates = mx.depends([kept.state, kept.middle, kept.gates], [gradient])

        def back(group: int, gradient: mx.array, inputs: mx.array, *, needed: bool = True) -> mx.array:
            part = self._parts[group]
            result = product_back(gradient, part.weights, part.kind) if needed else gradient
            if group in adapters:
                first, second = adapters[group]
                reduced = gradient @ second.T
                gradients[group] = reduced.T @ inputs, kept.low[group].T @ gradient
                result = mx.addmm(result, reduced, first) if needed else result
            return result

        inner = self._gated(gates) if 3 in adapters else gradient
        d_inner = back(3, gradient, inner)
        d_gates = self._kernels.gates_back(d_inner, gates) if self._kernels else _swiglu_back(d_inner, gates)
        d_normed = back(2, d_gates, normed(self._norms[1], between) if 2 in adapters else d_gates)
        middle = self._norm_back(1, between, d_normed, gradient)
        d_mixed = back(1, middle, kept.mixed)
        if spread:
            middle, d_mixed = spread(middle), spread(d_mixed)
        parts = attend_back(d_mixed, kept.attended, frame.mask, self._scale, self._kernels, frame.window, frame.spans)
        inputs = normed(self._norms[0], before) if 0 in adapters else d_mixed
        if self._kernels and self._kernels_adapt(adapters, frame):
            norm, (first, second), part = self._norms[0], adapters[0], self._parts[0]
            flat, reduced = self._turn_back(parts, frame, second)
            gradients[0] = (self._kernels.factors_back(inputs, reduced, kept.low[0], flat),)
            if not need_input:
                return None, gradients
            total = product_back(flat, part.weights, part.kind)
            below = self._kernels.norm_back(before, norm.weight, total, middle, norm.eps, (reduced, first))
            return below, gradients
        flat = self._turned_back(parts, frame)
        total = back(0, flat, inputs, needed=need_input)
        return self._norm_back(0, before, total, middle) if need_input else None, gradients

    def _gated(self, gates: mx.array) -> mx.array:
        return self._kernels.gated(gates) if self._kernels else swiglu(*mx.split(gates, 2, axis=1))

    def _kernels_adapt(self, adapters: Adapters, frame: Frame) -> bool:
        """Whether kernels take the adapter of queries, keys and values, if there is one."""
        return self._kernels is not None and 0 in adapters and self._kernels.adapts(frame.shape, len(adapters[0][0]))

    def _turn(
        self, heads: mx.array, frame: Frame, adapter: tuple[mx.array, mx.array] | None = None
    ) -> tuple[mx.array, mx.array, mx.array]:
        """See LayerKernels.turn."""
        assert self._kernels
        assert frame.spans is not None
        return self._kernels.turn(heads, *frame.shape, frame.spans, adapter, _longest(frame))

    def _turn_back(
        self, parts: tuple[mx.array, mx.array, mx.array], frame: Frame, second: mx.array | None = None
    ) -> tuple[mx.array, mx.array]:
        """See LayerKernels.turn_back."""
        assert self._kernels
        assert frame.spans is not None
        return self._kernels.turn_back(*parts, frame.spans, second, _longest(frame))

    def _turned(self, heads: mx.array, frame: Frame) -> tuple[mx.array, mx.array, mx.array]:
        """(T, heads * size) -> query, key and value for attention, the first two turned by their positions."""
        rows, length = frame.shape
        if self._kernels:
            return self._turn(heads, frame)
        heads = self._rope(heads.reshape(rows * length * self.heads, 1, 1, -1), offset=frame.turns)
        heads = heads.reshape(rows, length, self.heads, -1)
        query = mx.contiguous(heads[:, :, : self._queries].transpose(0, 2, 1, 3))
        # Keys before values, so that each of them lies in one piece.
        others = heads[:, :, self._queries :].reshape(rows, length, 2, self._keys, -1).transpose(2, 0, 3, 1, 4)
        key, value = (one.reshape(rows, self._keys, length, -1) for one in mx.split(mx.contiguous(others), 2))
        return query, key, value

    def _turned_back(self, parts: tuple[mx.array, mx.array, mx.array], frame: Frame) -> mx.array:
        """Gradients of what `_turned` gave -> that of its input."""
        if self._kernels:
            return self._turn_back(parts, frame)[0]
        heads = mx.concatenate([one.transpose(0, 2, 1, 3) for one in parts], axis=2)
        heads = heads.reshape(-1, 1, 1, heads.shape[-1])
        # A rotation's way back does not depend on what was rotated.
        turned = mx.vjp(lambda x: self._rope(x, offset=frame.turns), [heads], [heads])[1][0]
        return turned.reshape(frame.shape[0] * frame.shape[1], -1)

    def _norm_back(self, number: int, state: mx.array, gradient: mx.array, rest: mx.array) -> mx.array:
        """rest + the gradient of a norm's input."""
        norm = self._norms[number]
        if self._kernels:
            return self._kernels.norm_back(state, norm.weight, gradient, rest, norm.eps)
        return rest + normed_back(norm, state, gradient)


class Taken:
    """Where the adapters' entries lie in the vector.

    Args:
        blocks: of the layers, with their LoRA layers.
        scales: by which each entry of the vector is multiplied, and its gradient.
    """

    def __init__(self, layout: Layout, blocks: list[Any], scales: mx.array, kernels: Kernels | None) -> None:
        starts, self._size = layout.starts, layout.size
        self._scales, self._kernels = scales, kernels
        # By group, of each adapted layer the shapes of its factors.
        self._shapes: dict[int, list[tuple[int, tuple[int, ...], tuple[int, ...]]]] = {}
        every: list[NDArray[np.int32]] = []
        for group, names in enumerate(GROUPS):
            for number, block in enumerate(blocks):
                found = _indices(names, number, block, layout, starts)
                if found is not None:
                    self._shapes.setdefault(group, []).append((number, found[0].shape, found[1].shape))
                    every += [one.reshape(-1) for one in found]
        flat = np.concatenate(every)
        back = np.empty(self._size, np.int32)
        back[flat[flat < self._size]] = np.nonzero(flat < self._size)[0]
        self._back = mx.array(back)
        self._taken = mx.array(flat)
        self.lowest = min(number for entries in self._shapes.values() for number, *_ in entries)

    def adapters(self, vector: mx.array, dtype: mx.Dtype, layers: int, dropout: float) -> list[Adapters]:
        """Each layer's adapters out of the vector, in a type; dropout is 0 here."""
        assert not dropout
        if self._kernels:
            assert self._kernels.dtype == dtype
            taken = self._kernels.entries(vector, self._scales, self._taken)
        else:
            # The last is what stands between blocks.
            scaled = mx.concatenate([(vector * self._scales).astype(dtype), mx.zeros(1, dtype=dtype)])
            taken = scaled[self._taken]
        found: list[Adapters] = [{} for _ in range(layers)]
        start = 0
        for group, entries in self._shapes.items():
            for number, *shapes in entries:
                parts = []
                for shape in shapes:
                    end = start + math.prod(shape)
                    parts.append(taken[start:end].reshape(shape))  # views
                    start = end
                found[number][group] = parts[0], parts[1]
        return found

    def vector(self, gradients: list[Gradients]) -> mx.array:
        """The gradients of the layers' adapters as a vector in float32."""
        parts = [
            one.reshape(-1)
            for group, entries in self._shapes.items()
            for number, *_ in entries
            for one in gradients[number][group]
        ]
        whole = mx.concatenate(parts)
        if self._kernels:
            return self._kernels.entries_back(whole, self._scales, self._back)
        return whole[self._back].astype(mx.float32) * self._scales


def _longest(frame: Frame) -> int | None:
    """Tokens that an example may have, where several may lie in a row."""
    return PLAIN_ATTENTION if frame.attends else None


def packs(blocks: list[Any], lora: LoraParams, longest: int) -> bool:
    """Whether batches may have examples one after another, if the kernels that takes can be compiled.

    Args:
        longest: tokens of an example.
    """
    # Longer ones are for MLX's attention (PLAIN_ATTENTION), which knows rows alone.
    if longest > PLAIN_ATTENTION or lora.adapter != "lora" or lora.dropout or not mergeable(blocks):
        return False
    return all(will_attend(*_kind(block)) for block in blocks[-lora.layers :])


def _kind(block: Any) -> tuple[Any, int, tuple[int, int], mx.Dtype]:
    """What `layer_kernels` asks for: the attention, a head's size, widths of states and inside the MLP, their type."""
    (query, *_), (gate, *_) = projections(block, GROUPS[0]), projections(block, GROUPS[2])
    query, gate = (one.linear if "linear" in one else one for one in (query, gate))
    weight = block.input_layernorm.weight
    size = query.weight.shape[0] // block.self_attn.n_heads
    return block.self_attn, size, (weight.shape[0], gate.weight.shape[0]), weight.dtype


def _indices(
    names: tuple[str, ...], number: int, block: Any, layout: Layout, starts: dict[str, int]
) -> tuple[NDArray[np.int32], NDArray[np.int32]] | None:
    """Where in the vector the entries of a group's two factors lie, as Adapters has them, and its length for zeros."""
    firsts: list[NDArray[np.int32]] = []
    seconds: list[tuple[int, int, NDArray[np.int32]]] = []
    column = rank = 0
    for name, module in zip(names, projections(block, names), strict=True):
        base = module.linear if "linear" in module else module
        place = f"model.model.layers.{number}.{'self_attn' if name in block.self_attn else 'mlp'}.{name}"
        if f"{place}.lora_a" in layout.shapes:
            first, second = (
                starts[f"{place}.{part}"]
                + np.arange(np.prod(layout.shapes[f"{place}.{part}"]), dtype=np.int32).reshape(
                    layout.shapes[f"{place}.{part}"]
                )
                for part in ("lora_a", "lora_b")
            )
            firsts.append(first)
            seconds.append((rank, column, second))
            rank += len(second)
        column += base.weight.shape[0]
    if not firsts:
        return None
    filling = -rank % 8  # rows of zeros, for kernels that take eight at a time
    firsts.append(np.full((firsts[0].shape[0], filling), layout.size, np.int32))
    whole = np.full((rank + filling, column), layout.size, np.int32)
    for row, start, second in seconds:
        whole[row : row + second.shape[0], start : start + second.shape[1]] = second
    return np.ascontiguousarray(np.concatenate(firsts, axis=1).T), whole


def _swiglu_back(gradient: mx.array, gates: mx.array) -> mx.array:
    """(T, inner) and (T, 2 * inner) -> (T, 2 * inner), in one operation once it is compiled."""
    both = gates.reshape(gates.shape[0], 2, -1)
    gate, up, gradient = both[:, :1], both[:, 1:], gradient[:, None]
    share = mx.sigmoid(gate)
    activated = gate * share
    first = mx.arange(2)[:, None] == 0
    return (gradient * mx.where(first, up * (share + activated * (1 - share)), activated)).reshape(gates.shape)
