"""The loss of a batch and its gradients, for a model whose layers are known and for any other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from sqlora.mlx import mx, nn, tree_unflatten

from sqlora.llama import GROUPS, mergeable, projections, supports
from sqlora.params.lora import LoraParams
from sqlora.train.cuda.kernels import Kernels, kernels_for
from sqlora.train.feed import Ready
from sqlora.train.fused import FusedLayer, Taken
from sqlora.train.layer import Factors, Frame, Gradients, Layer, Rows
from sqlora.train.layout import Layout
from sqlora.train.upper import Upper, embed

_LAYERS_AHEAD = 2  # of a validation; a layer over its 1,024 tokens takes a GPU longer than the host


class Model(Protocol):
    """What a training step and a validation need of the upper part of a model and an adapter's vector.

    packs: whether its batches may have examples one after another.
    """

    packs: bool

    def gradients(self, vector: mx.array, batch: Ready) -> tuple[mx.array, mx.array]:
        """The summed loss of the batch's counted tokens and its gradient, a vector in float32."""

    def losses(self, vector: mx.array, batch: Ready) -> tuple[mx.array, mx.array]:
        """The summed loss of the tokens of completions, and of all counted tokens; without dropout."""


def choose_model(upper: Upper, layout: Layout, lora: LoraParams, *, compiled: bool, fused: bool) -> Model:
    """The written-out layers where the model has them, MLX's automatic differentiation otherwise."""
    if supports(upper.layers):
        fused = fused and not lora.dropout and mergeable(upper.layers)
        return Written(upper, layout, lora, compiled=compiled, fused=fused)
    return Automatic(upper, layout, compiled=compiled)


class Written:
    """Layers whose backward pass is written out (sqlora.train.layer, sqlora.train.fused).

    The adapter is kept and updated in float32 and computed with in the model's own type.

    Args:
        fused: by the layers with merged projections, for models that are `mergeable`, without dropout.
    """

    def __init__(
        self, upper: Upper, layout: Layout, lora: LoraParams, *, compiled: bool = False, fused: bool = False
    ) -> None:
        self._upper = upper
        self._layers: list[Any]
        self._adapters: Named | Taken
        self._kernels: Kernels | None = None
        scales = _scales(layout, lora)
        if fused:
            weight = upper.model.model.norm.weight
            heads = projections(upper.layers[0], GROUPS[0])[0]
            heads = heads.linear if "linear" in heads else heads
            # Rows that are taken by their indices: of the states, and of what comes out of the attention.
            self._kernels = kernels_for(weight.dtype, [*weight.shape, heads.weight.shape[0]])
            self._adapters = Taken(layout, upper.layers, scales, self._kernels)
            self._layers = [FusedLayer(block) for block in upper.layers]
            mx.clear_cache()  # the weights that were merged have no other use for their memory
        else:
            self._adapters = Named(layout, len(upper.layers), scales)
            self._layers = [Layer(block) for block in upper.layers]
        self.packs = all(isinstance(layer, FusedLayer) and layer.attends for layer in self._layers)
        self._dropout, self._compiled = lora.dropout, compiled
        self._run_gradients = _compile(self._gradients, compiled)

    def gradients(self, vector: mx.array, batch: Ready) -> tuple[mx.array, mx.array]:
        """See Model."""
        arrays = [vector, batch.inputs, batch.positions, batch.targets, batch.weights, batch.places]
        loss, gradient = self._run_gradients(*arrays, *(() if batch.spans is None else [batch.spans]))
        return loss, gradient

    def losses(self, vector: mx.array, batch: Ready) -> tuple[mx.array, mx.array]:
        """See Model."""
        state, shape = self._start(batch.inputs)
        under_way: list[mx.array] = []
        for layer, adapters, frame in self._each(vector, state, shape, batch.spans, dropout=0.0):
            state, _ = layer.forward(state, frame, adapters)
            if self._compiled:
                # Hands the device what there is. It lets go of a layer's inner values when all is done that was handed
                # over with them, and these batches are large. MLX's memory limit hardly holds the host back here: it
                # waits for graphs that are full, and with few rows a layer does not fill one.
                mx.async_eval(state)
                under_way.append(state)
                if len(under_way) > _LAYERS_AHEAD:
                    mx.eval(under_way.pop(0))
        return _both_losses(self._upper, self._chosen(state, batch.positions), batch)

    def _gradients(
        self,
        vector: mx.array,
        inputs: mx.array,
        positions: mx.array,
        targets: mx.array,
        weights: mx.array,
        places: mx.array,
        spans: mx.array | None = None,
    ) -> tuple[mx.array, mx.array]:
        state, shape = self._start(inputs)
        each = self._each(vector, state, shape, spans, dropout=self._dropout)
        kept: list[Any] = []
        masks: list[dict[str, mx.array | None]] = []
        # With no layer frozen, those below the lowest adapter need no way back.
        lowest = self._adapters.lowest
        pick: Rows = partial(self._chosen, indices=positions)
        early = picks_early(len(positions), len(state))
        picks: list[Rows | None] = [None for _ in each[1:]]
        picks.append(pick if early else None)
        for (layer, adapters, frame), one in zip(each, picks, strict=True):
            before = state
            state, inner = layer.forward(before, frame, adapters, pick=one)
            masks.append(inner.masks)
            kept.append(before if self._upper.checkpointing else inner)
        del kept[:lowest]

        def spread(rows: mx.array) -> mx.array:
            # By gathering: whose next token does not count takes a row of zeros, behind the others.
            if not self._kernels:
                rows = mx.concatenate([rows, mx.zeros((1, rows.shape[1]), dtype=rows.dtype)])
            return self._chosen(rows, places)

        loss, gradient = _loss_back(self._upper, state if early else pick(state), targets, weights)
        gradient = gradient if early else spread(gradient)
        found: list[Any] = [{} for _ in each]
        for number in reversed(range(lowest, len(each))):
            layer, adapters, frame = each[number]
            keep = kept.pop()
            if isinstance(keep, mx.array):
                # The values depend on the gradient, so that they are not computed before their turn.
                again = mx.depends([keep], [gradient])[0]
                keep = layer.forward(again, frame, adapters, masks[number], picks[number])[1]
            picked = spread if picks[number] else None
            below, found[number] = layer.backward(
                gradient, keep, frame, adapters, need_input=number > lowest, spread=picked
            )
            gradient = gradient if below is None else below
            if self._upper.checkpointing and below is not None:
                # MLX would compute the factors' gradients last and keep what they need of every layer until then.
                needed = [part for pair in found[number].values() for part in pair]
                gradient = mx.depends([gradient], needed)[0]
        return loss, self._adapters.vector(found)

    def _chosen(self, states: mx.array, indices: mx.array) -> mx.array:
        """Rows by their indices; the kernels give zeros for one behind the last."""
        return self._kernels.rows(states, indices) if self._kernels else states[indices]

    def _start(self, inputs: mx.array) -> tuple[mx.array, tuple[int, int]]:
        shape = (inputs.shape[0], inputs.shape[1])
        states = embed(self._upper.model.model.embed_tokens, inputs) if inputs.ndim == 2 else inputs
        return states.reshape(shape[0] * shape[1], -1), shape

    def _each(
        self, vector: mx.array, state: mx.array, shape: tuple[int, int], spans: mx.array | None, dropout: float
    ) -> list[tuple[Any, Any, Frame]]:
        adapters = self._adapters.adapters(vector, state.dtype, len(self._layers), dropout)
        window: int | None = getattr(self._upper.model.args, "sliding_window", None)
        frames: dict[int | None, Frame] = {}
        result = []
        for layer, block, one in zip(self._layers, self._upper.layers, adapters, strict=True):
            sees = window if getattr(block, "use_sliding", False) else None
            if sees not in frames:
                frames[sees] = layer.frame(shape, state.dtype, sees, spans)
            result.append((layer, one, frames[sees]))
        return result


class Named:
    """The adapters of each layer by the names of its projections, as sqlora.train.layer takes them."""

    def __init__(self, layout: Layout, layers: int, scales: mx.array) -> None:
        self._layout, self._scales = layout, scales
        self._places = [_places(layout, number) for number in range(layers)]
        self.lowest = min(number for number, places in enumerate(self._places) if places)

    def adapters(self, vector: mx.array, dtype: mx.Dtype, layers: int, dropout: float) -> list[dict[str, Factors]]:
        """Each layer's adapters out of the vector, in a type."""
        arrays = self._layout.split((vector * self._scales).astype(dtype))
        return [
            {
                name: Factors(arrays[f"{place}.lora_a"], arrays[f"{place}.lora_b"], dropout)
                for name, place in places.items()
            }
            for places in self._places[:layers]
        ]

    def vector(self, gradients: list[Gradients]) -> mx.array:
        """The gradients of the layers' adapters as a vector in float32."""
        found: dict[str, mx.array] = {}
        for places, pairs in zip(self._places, gradients, strict=True):
            for name, (a, b) in pairs.items():
                found[f"{places[name]}.lora_a"], found[f"{places[name]}.lora_b"] = a, b
        return self._layout.join(found).astype(mx.float32) * self._scales


class Automatic:
    """Any model and any adapter that mlx-lm knows, through MLX's automatic differentiation."""

    packs = False

    def __init__(self, upper: Upper, layout: Layout, *, compiled: bool = False) -> None:
        self._upper, self._layout = upper, layout
        self._run_gradients = _compile(self._gradients, compiled)

    def gradients(self, vector: mx.array, batch: Ready) -> tuple[mx.array, mx.array]:
        """See Model."""
        loss, gradient = self._run_gradients(vector, batch.inputs, batch.positions, batch.targets, batch.weights)
        return loss, gradient

    def _gradients(
        self, vector: mx.array, inputs: mx.array, positions: mx.array, targets: mx.array, weights: mx.array
    ) -> tuple[mx.array, mx.array]:
        self._upper.train()

        def summed(arrays: Mapping[str, mx.array]) -> mx.array:
            return _summed_loss(self._upper, self._hidden(arrays, inputs)[positions], targets, weights)

        loss, gradients = mx.value_and_grad(summed)(self._layout.split(vector))
        return loss, self._layout.join(gradients).astype(mx.float32)

    def losses(self, vector: mx.array, batch: Ready) -> tuple[mx.array, mx.array]:
        """See Model."""
        self._upper.eval()
        states = self._hidden(self._layout.split(vector), batch.inputs)[batch.positions]
        return _both_losses(self._upper, states, batch)

    def _hidden(self, arrays: Mapping[str, mx.array], inputs: mx.array) -> mx.array:
        self._upper.update(tree_unflatten(list(arrays.items())))
        state = self._upper.states(inputs)
        return state.reshape(-1, state.shape[-1])


def picks_early(counted: int, tokens: int) -> bool:
    """Whether the last layer goes on behind its attention with what the loss looks at alone.

    It is then a fraction of the work; with most of the tokens, taking them twice would cost more than it saves.
    """
    return 2 * counted <= tokens


def _compile(run: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    """Issuing operations one by one takes longer than a GPU needs for them; a compiled graph's MLX issues by itself."""
    if not compiled:
        return run
    result: Callable[..., Any] = mx.compile(run, inputs=mx.random.state, outputs=mx.random.state)
    return result


def _summed_loss(upper: Upper, states: mx.array, targets: mx.array, weights: mx.array) -> mx.array:
    """Of the tokens behind the chosen states (counted, width), in nats."""
    return (nn.losses.cross_entropy(upper.logits(states), targets) * weights).sum()


def _loss_back(upper: Upper, states: mx.array, targets: mx.array, weights: mx.array) -> tuple[mx.array, mx.array]:
    """The summed loss, and the gradient of the chosen states.

    It is the sum of the tokens' losses times their weights, so the weights are the losses' gradients. Automatic
    differentiation of the whole would multiply them by 1, with kernels that MLX compiles on a machine's first use.
    """

    def losses(states: mx.array) -> mx.array:
        return nn.losses.cross_entropy(upper.logits(states), targets)

    (each,), (gradient,) = mx.vjp(losses, [states], [weights])
    return (each * weights).sum(), gradient


def _scales(layout: Layout, lora: LoraParams) -> mx.array:
    """A factor for each entry of the vector: lora.scale is multiplied into every lora_b, and into its gradient."""
    scales = layout.join(
        {name: mx.full(shape, lora.scale if name.endswith("lora_b") else 1.0) for name, shape in layout.shapes.items()}
    )
    mx.eval(scales)  # or a compiled step computes them each time
    return scales


def _both_losses(upper: Upper, states: mx.array, batch: Ready) -> tuple[mx.array, mx.array]:
    """states: (counted, width), as in _summed_loss."""
    each = nn.losses.cross_entropy(upper.logits(states), batch.targets)
    return (each * batch.answers).sum(), (each * batch.weights).sum()


def _places(layout: Layout, layer: int) -> dict[str, str]:
    """Projection -> the beginning of its arrays' names, for one layer."""
    start = f"model.model.layers.{layer}."
    names = [name.removesuffix(".lora_a") for name in layout.shapes if name.endswith(".lora_a")]
    return {name.rsplit(".", 1)[1]: name for name in names if name.startswith(start)}
