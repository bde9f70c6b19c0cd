"""The loss of a batch and its gradients, for a model whose layers are known and for any other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from sqlora.mlx import mx, nn, tree_unflatten

import numpy as np

from sqlora.params.lora import LoraParams
from sqlora.train.layer import Factors, Kept, Layer, make_mask, supports
from sqlora.train.layout import Layout
from sqlora.train.loss import Batch
from sqlora.train.upper import Upper, to_mlx


class Model(Protocol):
    """What a training step and a validation need of the upper part of a model and an adapter's vector."""

    def hidden(self, vector: mx.array, inputs: mx.array) -> mx.array:
        """Tokens or states -> (T, width), the input of the last norm; T is rows x length."""

    def gradients(self, vector: mx.array, batch: Batch) -> tuple[mx.array, mx.array]:
        """The summed loss of the batch's counted tokens and its gradient, a vector in float32."""


def choose_model(upper: Upper, layout: Layout, lora: LoraParams) -> Model:
    """The written-out layers where the model has them, MLX's automatic differentiation otherwise."""
    return Written(upper, layout, lora) if supports(upper.layers) else Automatic(upper, layout)


class Written:
    """Layers whose backward pass is written out (sqlora.train.layer).

    The adapter is kept and updated in float32 and computed with in the model's own type.
    """

    def __init__(self, upper: Upper, layout: Layout, lora: LoraParams) -> None:
        self._upper, self._layout, self._dropout = upper, layout, lora.dropout
        self._layers = [Layer(block) for block in upper.layers]
        self._places = [_places(layout, number) for number in range(len(self._layers))]
        # A factor for each entry of the vector: lora.scale is multiplied into every lora_b, and into its gradient.
        self._scales = layout.join(
            {
                name: mx.full(shape, lora.scale if name.endswith("lora_b") else 1.0)
                for name, shape in layout.shapes.items()
            }
        )

    def hidden(self, vector: mx.array, inputs: mx.array) -> mx.array:
        """See Model."""
        state, shape = self._start(inputs)
        for layer, adapters, mask in self._each(vector, state, shape, dropout=0.0):
            state, _ = layer.forward(state, shape, mask, adapters)
        return state

    def gradients(self, vector: mx.array, batch: Batch) -> tuple[mx.array, mx.array]:
        """See Model."""
        upper = self._upper
        state, shape = self._start(to_mlx(batch.inputs))
        each = self._each(vector, state, shape, dropout=self._dropout)
        kept: list[Kept | mx.array] = []
        masks: list[dict[str, mx.array | None]] = []
        for layer, adapters, mask in each:
            before = state
            state, inner = layer.forward(before, shape, mask, adapters)
            masks.append({name: dropped for name, (_, dropped) in inner.low.items()})
            kept.append(before if upper.checkpointing else inner)
        loss, gradient = self._head(state, batch)
        found: dict[str, mx.array] = {}
        for number in reversed(range(len(each))):
            layer, adapters, mask = each[number]
            keep = kept.pop()
            if not isinstance(keep, Kept):
                # The values depend on the gradient, so that they are not computed before their turn.
                again = mx.depends([keep], [gradient])[0]
                keep = layer.forward(again, shape, mask, adapters, masks[number])[1]
            below, factors = layer.backward(gradient, keep, shape, mask, adapters, need_input=number > 0)
            gradient = gradient if below is None else below
            if upper.checkpointing and below is not None:
                # MLX would compute the factors' gradients last and keep what they need of every layer until then.
                needed = [part for pair in factors.values() for part in pair]
                gradient = mx.depends([gradient], needed)[0]
            for name, (a, b) in factors.items():
                place = self._places[number][name]
                found[f"{place}.lora_a"], found[f"{place}.lora_b"] = a, b
        return loss, self._layout.join(found).astype(mx.float32) * self._scales

    def _start(self, inputs: mx.array) -> tuple[mx.array, tuple[int, int]]:
        shape = (inputs.shape[0], inputs.shape[1])
        states = self._upper.model.model.embed_tokens(inputs) if inputs.ndim == 2 else inputs
        return states.reshape(shape[0] * shape[1], -1), shape

    def _each(
        self, vector: mx.array, state: mx.array, shape: tuple[int, int], dropout: float
    ) -> list[tuple[Layer, dict[str, Factors], Any]]:
        arrays = self._layout.split((vector * self._scales).astype(state.dtype))
        args = self._upper.model.args
        repeats = args.num_attention_heads // args.num_key_value_heads
        masks: dict[int | None, Any] = {}
        result = []
        for layer, block, places in zip(self._layers, self._upper.layers, self._places, strict=True):
            window = args.sliding_window if getattr(block, "use_sliding", False) else None
            if window not in masks:
                masks[window] = make_mask(shape[1], state.dtype, repeats, window)
            adapters = {
                name: Factors(arrays[f"{place}.lora_a"], arrays[f"{place}.lora_b"], dropout)
                for name, place in places.items()
            }
            result.append((layer, adapters, masks[window]))
        return result

    def _head(self, state: mx.array, batch: Batch) -> tuple[mx.array, mx.array]:
        """The loss, and its gradient with respect to the last layer's output, (T, width)."""
        upper, positions = self._upper, batch.positions
        targets = mx.array(batch.targets)

        def summed(chosen: mx.array) -> mx.array:
            return nn.losses.cross_entropy(upper.logits(chosen), targets).sum()

        loss, gradient = mx.value_and_grad(summed)(state[mx.array(positions)])
        # Back to all tokens by gathering: whose next token does not count takes the row of zeros behind the others.
        rows = np.full(state.shape[0], len(positions), dtype=np.int32)
        rows[positions] = np.arange(len(positions), dtype=np.int32)
        zeros = mx.zeros((1, state.shape[1]), dtype=gradient.dtype)
        return loss, mx.concatenate([gradient, zeros])[mx.array(rows)]


class Automatic:
    """Any model and any adapter that mlx-lm knows, through MLX's automatic differentiation."""

    def __init__(self, upper: Upper, layout: Layout) -> None:
        self._upper, self._layout = upper, layout

    def hidden(self, vector: mx.array, inputs: mx.array) -> mx.array:
        """See Model."""
        return self._hidden(self._layout.split(vector), inputs)

    def gradients(self, vector: mx.array, batch: Batch) -> tuple[mx.array, mx.array]:
        """See Model."""
        inputs, positions, targets = to_mlx(batch.inputs), mx.array(batch.positions), mx.array(batch.targets)

        def summed(arrays: Mapping[str, mx.array]) -> mx.array:
            chosen = self._hidden(arrays, inputs)[positions]
            return nn.losses.cross_entropy(self._upper.logits(chosen), targets).sum()

        loss, gradients = mx.value_and_grad(summed)(self._layout.split(vector))
        return loss, self._layout.join(gradients).astype(mx.float32)

    def _hidden(self, arrays: Mapping[str, mx.array], inputs: mx.array) -> mx.array:
        self._upper.update(tree_unflatten(list(arrays.items())))
        state = self._upper.states(inputs)
        return state.reshape(-1, state.shape[-1])


def _places(layout: Layout, layer: int) -> dict[str, str]:
    """Projection -> the beginning of its arrays' names, for one layer."""
    start = f"model.model.layers.{layer}."
    names = [name.removesuffix(".lora_a") for name in layout.shapes if name.endswith(".lora_a")]
    return {name.rsplit(".", 1)[1]: name for name in names if name.startswith(start)}
