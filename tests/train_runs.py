"""Examples, runs and comparisons for the tests of the training engine on a tiny model."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlora.mlx import mx, nn

import numpy as np
import pytest
from train_params import train_params

from sqlora.params.lora import LoraParams
from sqlora.tokenizer import Encoded
from sqlora.train.batching import Padded, Sizes
from sqlora.train.buckets import Planned
from sqlora.train.cuda import kernels, layers
from sqlora.train.feed import transfer
from sqlora.train.fused import FusedLayer
from sqlora.train.inputs import token_fetcher
from sqlora.train.loss import Batch, make_batch
from sqlora.train.run import Trained, train_adapter
from sqlora.train.states import StateStore
from sqlora.train.upper import Upper

LORA = LoraParams(adapter="lora", layers=2, rank=4, scale=10.0, dropout=0.0, targets=("q_proj", "v_proj"))
TRAIN = train_params()
Arrays = dict[str, np.ndarray]


def examples(count: int = 6) -> list[Encoded]:
    rng = np.random.default_rng(1)
    rows = []
    for number in range(count):
        prompt = [1, *rng.integers(3, 500, 5 + number).tolist()]
        rows.append(Encoded((*prompt, 40, 41, 42 + number % 2, 2), len(prompt)))
    return rows


def run(model: Path, *, lora: LoraParams = LORA, count: int = 2, **changes: Any) -> Trained:
    return train_adapter(
        model, examples(), examples(count), lora, dataclasses.replace(TRAIN, **changes), report=lambda _: None
    )


def arrays(trained: Trained) -> Arrays:
    return {name: np.array(value) for name, value in trained.adapter.items()}


def equal(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def batch_of(rows: Sequence[Encoded], length: int, kind: str, /, **filled: Any) -> Batch:
    """Of all these examples, whose inputs are tokens, padded to a length; filled: other fields of Planned."""
    chosen = list(range(len(rows)))
    planned = Planned(chosen, length, len(rows), 0)
    return make_batch(rows, dataclasses.replace(planned, **filled), token_fetcher(rows), kind)


def batch_indices(step: int, lengths: Sequence[int], buckets: Sequence[int], batch_size: int, seed: int) -> list[int]:
    """The examples of a step of a run with padded batches."""
    params = train_params(batch_size=batch_size, seed=seed)
    return Padded(Sizes(lengths, lengths), buckets, params, 1, few_shapes=False).examples(step)


def read_rows(store: StateStore, keys: Sequence[str], length: int) -> np.ndarray:
    """States padded to a length, (len(keys), length, width)."""
    starts = [row * length for row in range(len(keys))]
    return store.read(keys, starts, len(keys) * length).reshape(len(keys), length, store.width)


def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """For kernels that run on the CPU."""
    for user in (kernels, layers):
        monkeypatch.setattr(user, "compiled", lambda names, dtype: dict.fromkeys(names, b""))


def mean_loss(upper: Upper, batch: Batch) -> float:
    """Of the model as it is, through its own layers."""
    states = upper.states(transfer([batch])[0].inputs)
    logits = upper.logits(states.reshape(-1, states.shape[-1])[mx.array(batch.positions)])
    return nn.losses.cross_entropy(logits, mx.array(batch.targets)).mean().item()


def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Merge projections, send steps' inputs early, keep a validation's; returns layers, and the threads that sent."""
    found: dict[str, Any] = {"merged": [], "sent": set()}

    class Recorded(FusedLayer):
        def __init__(self, block: Any) -> None:
            super().__init__(block)
            found["merged"].append(self)

    monkeypatch.setattr("sqlora.train.run.compiles", lambda: True)
    monkeypatch.setattr("sqlora.train.gradients.FusedLayer", Recorded)
    monkeypatch.setattr("sqlora.train.feed.prefetch", lambda _: found["sent"].add(threading.current_thread()))
    for user in ("run", "feed", "validation"):
        monkeypatch.setattr(f"sqlora.train.{user}.has_cuda", lambda: True)
    return found


def fresh_start(folder: Path) -> None:
    shutil.rmtree(folder / ".sqlora", ignore_errors=True)
