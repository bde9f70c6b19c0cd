"""One optimizer step, and the validation beside it; compiled on a GPU, where that pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlora.mlx import mx, nn, optimizers, tree_map

import numpy as np

from sqlora.params.train import TrainParams
from sqlora.train.loss import Batch, summed_loss
from sqlora.train.optimizer import make_optimizer
from sqlora.train.upper import Upper, to_mlx

Arrays = tuple[mx.array, mx.array, mx.array, mx.array]


class Stepper:
    """The model, its optimizer and what both compute.

    Args:
        compiled: whether to compile; on a CPU that calls the C++ compiler and gains nothing.
    """

    def __init__(self, model: Upper, params: TrainParams, *, compiled: bool) -> None:
        self.model = model
        self.compiled = compiled
        self.optimizer = make_optimizer(params)
        self.optimizer.init(model.adapter())
        self._norm = params.max_gradient_norm
        wrap: Callable[..., Callable[..., Any]] = mx.compile if compiled else _plain
        gradients = nn.value_and_grad(model, summed_loss)
        random, state = mx.random.state, [model.state, self.optimizer.state]

        def add_up(total: Any, *arrays: mx.array) -> tuple[mx.array, Any]:
            loss, new = gradients(model, *arrays)
            return loss, new if total is None else tree_map(lambda a, b: a + b, total, new)

        def update(total: Any, counted: mx.array) -> mx.array:
            mean = tree_map(lambda gradient: gradient / counted, total)
            if self._norm is None:
                norm: mx.array = optimizers.clip_grad_norm(mean, float("inf"))[1]
            else:
                mean, norm = optimizers.clip_grad_norm(mean, self._norm)
            self.optimizer.update(model, mean)
            return norm

        def first(*arrays: mx.array) -> tuple[mx.array, Any]:
            return add_up(None, *arrays)

        self._first = wrap(first, inputs=[state, random], outputs=[state, random])
        self._next = wrap(add_up, inputs=[state, random], outputs=[state, random])
        self._update = wrap(update, inputs=state, outputs=state)
        self._losses = wrap(self._both_losses, inputs=[model.state], outputs=[])

    def restore(self, adapter: Any, state: Any) -> None:
        """Go on from a checkpoint's trees, in place: what is compiled holds on to the containers."""
        self.model.update(adapter)
        _merge(self.optimizer.state, state)
        mx.eval(self.model.adapter(), self.optimizer.state)

    def step(self, batches: Sequence[Batch]) -> tuple[mx.array, mx.array]:
        """Add up the gradients of the batches, weighted by their counted tokens, and update the model.

        Returns:
            The mean loss of a counted token and the norm of its gradient, not computed yet.
        """
        counted = sum(batch.counted for batch in batches)
        loss, total = self._first(*_arrays(batches[0]))
        for batch in batches[1:]:
            more, total = self._next(total, *_arrays(batch))
            loss = loss + more
        norm = self._update(total, mx.array(counted, dtype=mx.float32))
        loss = loss / counted
        mx.async_eval(loss, norm, self.model.adapter(), self.optimizer.state)
        return loss, norm

    def losses(self, batch: Batch, first: np.ndarray) -> tuple[float, float]:
        """Summed loss of the completion's tokens, and of all tokens, of a batch whose entries cover every position.

        Args:
            first: for each entry whether it belongs to a completion (1 or 0).
        """
        completion, every = self._losses(*_arrays(batch), mx.array(first))
        return completion.item(), every.item()

    def _both_losses(
        self, inputs: mx.array, positions: mx.array, targets: mx.array, weights: mx.array, first: mx.array
    ) -> tuple[mx.array, mx.array]:
        hidden = self.model.hidden(inputs)
        logits = self.model.logits(hidden.reshape(-1, hidden.shape[-1])[positions])
        each = nn.losses.cross_entropy(logits, targets) * weights
        return (each * first).sum(), each.sum()


def _merge(into: Any, new: Any) -> None:
    """Put the arrays of a tree into another in their places; empty branches are in the other one only."""
    for key, value in new.items() if isinstance(new, dict) else enumerate(new):
        if isinstance(value, dict | list):
            _merge(into[key], value)
        else:
            into[key] = value


def _arrays(batch: Batch) -> Arrays:
    return to_mlx(batch.inputs), mx.array(batch.positions), mx.array(batch.targets), mx.array(batch.weights)


def _plain(function: Callable[..., Any], **_: object) -> Callable[..., Any]:
    return function
