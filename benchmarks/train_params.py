"""The section `train` as the benchmarks set it."""

from __future__ import annotations

from typing import Any

from sqlora.params.train import TrainParams

_VALUES: dict[str, Any] = {
    "batch_size": 4,
    "gradient_accumulation": 1,
    "iterations": 1000,
    "optimizer": "adam",
    "learning_rate": 1e-5,
    "schedule": "constant",
    "warmup": 0,
    "weight_decay": 0.0,
    "max_gradient_norm": None,
    "loss": "all",
    "gradient_checkpointing": False,
    "report_every": 10,
    "validate_every": 200,
    "checkpoint_every": 100,
    "keep": "last",
    "early_stopping": None,
    "states_gb": 20.0,
    "seed": 1,
    "workers": 1,
    "hostfile": None,
    "backend": "auto",
    "force": True,
}


def train_params(**changes: Any) -> TrainParams:
    """The reference's run, with what a benchmark changes."""
    return TrainParams(**_VALUES | changes)
