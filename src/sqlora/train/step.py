"""An optimizer step: gradients of some batches, added up over batches and ranks, shortened, applied to the adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlora.mlx import mx

from sqlora.distributed.group import ALONE, Group
from sqlora.params.lora import LoraParams
from sqlora.params.train import TrainParams
from sqlora.train.checkpoint import flatten
from sqlora.train.feed import Ready
from sqlora.train.gradients import choose_model
from sqlora.train.layout import Layout
from sqlora.train.optimizer import make_optimizer
from sqlora.train.upper import Upper


class Stepper:
    """The adapter as a vector, its optimizer, and losses and gradients by them.

    Args:
        upper: with its adapter's layers, whose values are where training starts.
        group: the ranks that share the work; each calls the same methods, with batches of its own.
        compiled: compute a graph a shape, so batches had better have few; pays on a GPU.
        fused: merge projections where the model's can be, which changes their modules' weights to views; pays on a GPU
            that waits for its host.
    """

    def __init__(
        self,
        upper: Upper,
        lora: LoraParams,
        params: TrainParams,
        group: Group = ALONE,
        *,
        compiled: bool = False,
        fused: bool = False,
    ) -> None:
        start = flatten(upper.adapter())
        self.compiled, self._layout, self._group = compiled, Layout(start), group
        self._vector = self._layout.join(start)
        self._model = choose_model(upper, self._layout, lora, compiled=compiled, fused=fused)
        self._traced: set[tuple[tuple[int, ...], ...]] = set()  # shapes of batches
        self._norm = params.max_gradient_norm
        self.optimizer = make_optimizer(params)
        self.optimizer.init({"adapter": self._vector})
        mx.eval(self._vector, self.optimizer.state)

    @property
    def packs(self) -> bool:
        """Whether batches may have examples one after another."""
        return self._model.packs

    def adapter(self) -> dict[str, mx.array]:
        """The adapter's arrays by name."""
        return self._layout.split(self._vector)

    def restore(self, adapter: Mapping[str, mx.array], state: dict[str, Any]) -> None:
        """Go on from a checkpoint's arrays and the optimizer's tree."""
        self._vector = self._layout.join(adapter)
        self.optimizer.state = state
        mx.eval(self._vector, self.optimizer.state)

    def step(self, batches: Sequence[Ready], counted: int | None = None) -> tuple[mx.array, mx.array]:
        """Add up the gradients of the batches, weighted by their counted tokens, and update the adapter.

        Args:
            batches: of this rank; may be none if there are others.
            counted: tokens of all ranks' batches together; of these batches, if it is left out.

        Returns:
            The mean loss of a counted token and the norm of its gradient, not computed yet.
        """
        counted = sum(batch.counted for batch in batches) if counted is None else counted
        loss, gradient = self._group.add_up(*self._summed(batches))
        counts = mx.array([counted, 1 / counted])
        loss, norm = self._update(loss, gradient, counts)
        mx.async_eval(loss, norm, self._vector, self.optimizer.state)
        return loss, norm

    def look_ahead(self, batches: Iterable[Ready]) -> None:
        """Trace the graph of the first of these batches whose shape is new, while the device works on a step.

        That takes the host as long as a small step takes a GPU. Nothing is computed.
        """
        if self.compiled:
            new = next((batch for batch in batches if _shapes(batch) not in self._traced), None)
            if new is not None:
                self._gradients(new)

    def _gradients(self, batch: Ready) -> tuple[mx.array, mx.array]:
        self._traced.add(_shapes(batch))
        return self._model.gradients(self._vector, batch)

    def _update(self, loss: mx.array, gradient: mx.array, counts: mx.array) -> tuple[mx.array, mx.array]:
        """Mean loss and norm, from sums; counts: (2,) the counted tokens, and one over them.

        Not compiled: MLX's kernels for single operations are there, those for several it compiles on first use.
        """
        # Slices, for an index gathers.
        gradient = gradient * counts[1:]
        norm = mx.sqrt(mx.square(gradient).sum())
        if self._norm is not None:
            gradient = gradient * mx.minimum(self._norm / (norm + 1e-6), 1.0)
        self._vector = self.optimizer.apply_gradients({"adapter": gradient}, {"adapter": self._vector})["adapter"]
        return loss / counts[:1].squeeze(0), norm

    def _summed(self, batches: Sequence[Ready]) -> tuple[mx.array, mx.array]:
        if not batches:
            return mx.zeros(()), mx.zeros(self._layout.size)
        loss, gradient = self._gradients(batches[0])
        for batch in batches[1:]:
            mx.async_eval(loss, gradient)  # one after the other, or the memory of all batches is needed at once
            more, next_gradient = self._gradients(batch)
            loss, gradient = loss + more, gradient + next_gradient
        return loss, gradient

    def losses(self, batch: Ready) -> mx.array:
        """Summed loss of the completions' tokens, and of all tokens, of a batch of kind `all`, not computed yet."""
        both = mx.stack(list(self._model.losses(self._vector, batch)))
        mx.async_eval(both)
        return both


def _shapes(batch: Ready) -> tuple[tuple[int, ...], ...]:
    return batch.inputs.shape, batch.positions.shape


def compiles() -> bool:
    """Whether training compiles its steps: on a CPU mx.compile calls the C++ compiler and gains nothing."""
    return mx.default_device().type == mx.DeviceType.gpu
