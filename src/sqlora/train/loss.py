"""The two losses: of the completion's tokens alone, and of every token, as the reference counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlora.mlx import mx, nn

import numpy as np
from numpy.typing import NDArray

from sqlora.tokenizer import Encoded
from sqlora.train.upper import Upper

Fetch = Callable[[Sequence[int], int], NDArray[np.generic]]


@dataclass(frozen=True)
class Batch:
    """One batch on its way to the model.

    inputs: (rows, length) tokens or (rows, length, width) states; rows and tokens behind the real ones are zeros.
    positions: (counted,) indices into the flattened (rows, length) whose next token counts; targets: those next tokens;
    weights: 1, or 0 where an entry only fills up the shape. real_tokens: without padding.
    """

    inputs: NDArray[np.generic]
    positions: NDArray[np.int32]
    targets: NDArray[np.int32]
    weights: NDArray[np.float32]
    real_tokens: int

    @property
    def counted(self) -> int:
        """How many tokens the loss counts."""
        return int(self.weights.sum())


def counted_from(example: Encoded, kind: str) -> int:
    """The first position whose next token counts: the prompt's last token predicts the completion's first."""
    return example.prompt_tokens - 1 if kind == "completion" else 0


def make_batch(
    examples: Sequence[Encoded], chosen: Sequence[int], fetch: Fetch, *, rows: int, length: int, counted: int, kind: str
) -> Batch:
    """Gather a batch.

    Args:
        chosen: indices into examples.
        fetch: gives the inputs of examples at a length.
        rows, length, counted: the shape, which the batch is filled up to; counted 0 is as many as there are.
        kind: `completion` or `all`.
    """
    positions: list[int] = []
    targets: list[int] = []
    for row, index in enumerate(chosen):
        example = examples[index]
        first = counted_from(example, kind)
        positions += range(row * length + first, row * length + len(example.tokens) - 1)
        targets += example.tokens[first + 1 :]
    real, size = len(positions), max(counted, len(positions))
    inputs = fetch(chosen, length)
    if len(inputs) < rows:
        inputs = np.concatenate([inputs, np.zeros((rows - len(inputs), *inputs.shape[1:]), dtype=inputs.dtype)])
    return Batch(
        inputs,
        np.asarray([*positions, *[0] * (size - real)], dtype=np.int32),
        np.asarray([*targets, *[0] * (size - real)], dtype=np.int32),
        np.asarray([1.0] * real + [0.0] * (size - real), dtype=np.float32),
        sum(len(examples[index].tokens) for index in chosen),
    )


def summed_loss(model: Upper, inputs: mx.array, positions: mx.array, targets: mx.array, weights: mx.array) -> mx.array:
    """Sum of the cross-entropy of the counted tokens, in nats; logits are computed for these positions only."""
    hidden = model.hidden(inputs)
    logits = model.logits(hidden.reshape(-1, hidden.shape[-1])[positions])
    return (nn.losses.cross_entropy(logits, targets) * weights).sum()
