"""The two losses: of the completion's tokens alone, and of every token, as the reference counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sqlora.tokenizer import Encoded

Fetch = Callable[[Sequence[int], int], NDArray[np.generic]]


@dataclass(frozen=True)
class Batch:
    """One batch on its way to the model.

    inputs: (rows, length) tokens or (rows, length, width) states; what lies behind an example is zeros.
    positions: (counted,) indices into the flattened (rows, length) whose next token counts; targets: those next tokens.
    answers: (counted,) 1 where the next token belongs to a completion, else 0.
    real_tokens: without padding.
    """

    inputs: NDArray[np.generic]
    positions: NDArray[np.int32]
    targets: NDArray[np.int32]
    answers: NDArray[np.float32]
    real_tokens: int

    @property
    def counted(self) -> int:
        """How many tokens the loss counts."""
        return len(self.positions)


def counted_from(example: Encoded, kind: str) -> int:
    """The first position whose next token counts: the prompt's last token predicts the completion's first."""
    return example.prompt_tokens - 1 if kind == "completion" else 0


def make_batch(examples: Sequence[Encoded], chosen: Sequence[int], fetch: Fetch, *, length: int, kind: str) -> Batch:
    """Gather a batch.

    Args:
        chosen: indices into examples.
        fetch: gives the inputs of examples at a length.
        kind: `completion` or `all`.
    """
    positions: list[int] = []
    targets: list[int] = []
    answers: list[float] = []
    for row, index in enumerate(chosen):
        example = examples[index]
        first, last = counted_from(example, kind), len(example.tokens) - 1
        answer = counted_from(example, "completion")
        positions += range(row * length + first, row * length + last)
        targets += example.tokens[first + 1 :]
        answers += [float(place >= answer) for place in range(first, last)]
    return Batch(
        fetch(chosen, length),
        np.asarray(positions, dtype=np.int32),
        np.asarray(targets, dtype=np.int32),
        np.asarray(answers, dtype=np.float32),
        sum(len(examples[index].tokens) for index in chosen),
    )
