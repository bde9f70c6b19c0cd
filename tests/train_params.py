"""The section `train` for tests, where any will do."""

from __future__ import annotations

from typing import Any

from sqlora.params.train import TrainParams

_VALUES: dict[str, Any] = {
    "batch_size": 2,
    "gradient_accumulation": 1,
    "iterations": 30,
    "optimizer": "adam",
    "learning_rate": 2e-2,
    "schedule": "constant",
    "warmup": 0,
    "weight_decay": 0.0,
    "max_gradient_norm": None,
    "loss": "completion",
    "gradient_checkpointing": False,
    "report_every": 10,
    "validate_every": 15,
    "checkpoint_every": 100,
    "keep": "last",
    "early_stopping": None,
    "states_gb": 1.0,
    "seed": 3,
    "workers": 1,
    "hostfile": None,
    "backend": "auto",
    "force": False,
}


def train_params(**changes: Any) -> TrainParams:
    """A short run of a tiny model, with what a test changes."""
    return TrainParams(**_VALUES | changes)
