"""Chooses tokens from logits, under masks that are made while the step is prepared and computed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

from sqlora.mlx import mx

import numpy as np
from llguidance import LLExecutor
from numpy.typing import NDArray

from sqlora.errors import SqloraError
from sqlora.generate.constraint import Constraint, fill

# Tokens with the logarithms of their probabilities.
Choices = list[tuple[int, float]]
NO_TOKEN = -1


@dataclass
class Counts:
    """What decoding took; seconds are of the host and partly while the device computed.

    steps: of the model, without those that read prompts; decisions: tokens chosen by the model, EOS included; forced:
    tokens that the grammar forced; prompts: seconds of reading prompts, their first choice included; grammars, masks,
    matching: of waiting for grammars, waiting for masks, following the answers; waiting: for the device.
    """

    steps: int = 0
    decisions: int = 0
    forced: int = 0
    prompts: float = 0.0
    decoding: float = 0.0
    masks: float = 0.0
    grammars: float = 0.0
    matching: float = 0.0
    waiting: float = 0.0


class Masks:
    """Makes masks of the tokens that grammars let pass, on threads of its own.

    Args:
        vocabulary: number of logits.
    """

    def __init__(self, vocabulary: int, counts: Counts) -> None:
        self._vocabulary, self._counts = vocabulary, counts
        self._thread = ThreadPoolExecutor(1)
        self._threads = _threads()
        self._making: Future[NDArray[np.int32]] | None = None

    def begin(self, constraints: Mapping[int, Constraint | None]) -> None:
        """Make the masks of some rows of the next logits; the constraints are not to be touched until `allowed`.

        Rows that are not named, and those without a constraint, may choose any token.
        """
        held = {row: constraint for row, constraint in constraints.items() if constraint is not None}
        self._making = self._thread.submit(self._make, held) if held else None

    def allowed(self, logits: mx.array) -> mx.array:
        """Logits (rows, vocabulary) with minus infinity where a row's constraint lets no token pass."""
        mx.async_eval(logits)
        if self._making is None:
            return logits
        started = time.perf_counter()
        made = self._making.result()
        self._making = None
        self._counts.masks += time.perf_counter() - started
        masks = np.full((logits.shape[0], made.shape[1]), -1, np.int32)
        masks[: len(made)] = made
        bits = (mx.array(masks.view(np.uint32))[:, :, None] >> mx.arange(32, dtype=mx.uint32)) & 1
        return mx.where(bits.reshape(logits.shape[0], -1)[:, : self._vocabulary] == 1, logits, -mx.inf)

    def _make(self, constraints: Mapping[int, Constraint]) -> NDArray[np.int32]:
        masks = np.full((max(constraints) + 1, -(-self._vocabulary // 32)), -1, np.int32)
        fill(constraints, masks, self._threads)
        return masks


@cache
def _threads() -> LLExecutor:
    return LLExecutor()


def likeliest(logits: mx.array, counts: Counts) -> list[int]:
    """The token of each row; NO_TOKEN where the logits are no numbers."""
    started = time.perf_counter()
    tokens = mx.argmax(logits, axis=-1, keepdims=True)
    finite = mx.isfinite(mx.take_along_axis(logits, tokens, axis=-1))
    chosen = np.array(mx.where(finite, tokens.astype(mx.int32), NO_TOKEN))[:, 0]
    counts.waiting += time.perf_counter() - started
    return [int(token) for token in chosen]


def likeliest_few(logits: mx.array, few: int, counts: Counts) -> list[Choices]:
    """Of each row the `few` likeliest tokens, each with the logarithm of its probability, the likeliest first."""
    started = time.perf_counter()
    logits = logits.astype(mx.float32)
    few = min(few, logits.shape[1])
    tokens = mx.argpartition(-logits, few - 1, axis=-1)[:, :few]
    scores = mx.take_along_axis(logits, tokens, axis=-1) - mx.logsumexp(logits, axis=-1, keepdims=True)
    mx.eval(tokens, scores)
    pairs = zip(np.array(tokens), np.array(scores), strict=True)
    chosen: list[Choices] = [
        sorted(zip(map(int, row), map(float, values), strict=True), key=lambda choice: (-choice[1], choice[0]))
        for row, values in pairs
    ]
    counts.waiting += time.perf_counter() - started
    return chosen


def not_finite(found: str) -> SqloraError:
    """The error of a model whose output is NaN or infinite, from which nothing can be chosen."""
    return SqloraError(
        "the model's output",
        found=found,
        expected="finite logits",
        next_step="The weights are damaged or too large for their type: with convert.dtype float16 take bfloat16, else "
        "delete artifacts/adapter and run dvc repro.",
    )
