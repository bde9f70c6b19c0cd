"""Which examples each training step sees, and how they become arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import numpy as np
from numpy.typing import NDArray

from sqlora.tokenizer import Encoded


@dataclass(frozen=True)
class Batch:
    """inputs: (rows, length) token ids, padded at the end with 0.

    positions: (counted,) indices into the flattened inputs whose next token the loss counts; targets: (counted,) those
    next tokens. real_tokens: without padding.
    """

    inputs: NDArray[np.int32]
    positions: NDArray[np.int32]
    targets: NDArray[np.int32]
    real_tokens: int


def batch_indices(step: int, lengths: Sequence[int], batch_size: int, seed: int) -> list[int]:
    """The examples of a step: a function of the seed and the step alone, so that a run can resume anywhere.

    Every epoch is a new permutation that holds each example once; its last batch may be smaller. Within the
    permutation, runs of 16 batches are sorted by length, which keeps padding low; then the batches are shuffled.

    Args:
        step: from 0.
        lengths: tokens of each example.
    """
    batches = -(-len(lengths) // batch_size)
    epoch, number = divmod(step, batches)
    return _epoch(tuple(lengths), batch_size, seed, epoch)[number]


@lru_cache(maxsize=1)
def _epoch(lengths: tuple[int, ...], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    rng = Random(f"{seed}/{epoch}")
    count = len(lengths)
    order = list(range(count))
    rng.shuffle(order)
    window = 16 * batch_size
    runs = (order[start : start + window] for start in range(0, count, window))
    order = [index for run in runs for index in sorted(run, key=lengths.__getitem__)]
    batches = [order[start : start + batch_size] for start in range(0, count, batch_size)]
    rng.shuffle(batches)
    return batches


def make_batch(examples: Sequence[Encoded]) -> Batch:
    """Pad to the longest example. The loss counts the completion's tokens and EOS: never the prompt, never padding."""
    length = max(len(example.tokens) for example in examples) - 1
    inputs = np.zeros((len(examples), length), dtype=np.int32)
    positions, targets = [], []
    for row, example in enumerate(examples):
        inputs[row, : len(example.tokens) - 1] = example.tokens[:-1]
        first = example.prompt_tokens - 1  # the prompt's last token predicts the completion's first
        positions.append(np.arange(row * length + first, row * length + len(example.tokens) - 1))
        targets.append(example.tokens[example.prompt_tokens :])
    return Batch(
        inputs,
        np.concatenate(positions).astype(np.int32),
        np.concatenate([np.asarray(target) for target in targets]).astype(np.int32),
        sum(len(example.tokens) for example in examples),
    )
