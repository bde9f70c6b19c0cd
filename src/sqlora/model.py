"""Loads the converted base model and its adapter, with mlx-lm's model definitions and adapter format."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlora.mlx import mx, nn

from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model

from sqlora.errors import SqloraError


def load_base(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load what the convert stage wrote.

    Returns:
        The model, frozen and in evaluation mode, and its config.json.
    """
    if not (folder / "config.json").is_file():
        raise SqloraError(
            folder / "config.json",
            found="no such file",
            expected="a converted model",
            next_step="Run dvc repro convert.",
        )
    with _readable(folder):
        model, config = load_model(folder)
    model.freeze()
    model.eval()
    return model, config


def load_lazily(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load what the convert stage wrote so that each weight is read when it is first used.

    Returns:
        The model and its config.json.
    """
    with _readable(folder):
        model, config = load_model(folder, lazy=True)
        for file in sorted(folder.glob("*.safetensors")):
            # On the stream of the CPU: there a thread reads while a GPU computes. On CUDA's own stream the caller would
            # read, and through memory that the driver has to copy once more: 3 GB/s instead of 9.
            weights = mx.load(str(file), stream=mx.cpu)
            assert isinstance(weights, dict)
            # Not strict: a file has a part of the model. That the parts are the whole was checked above.
            model.load_weights(list(weights.items()), strict=False)
    return model, config


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Say what a model's folder lacks, in place of mlx-lm's errors."""
    try:
        yield
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        raise SqloraError(
            folder,
            found=f"a model that mlx-lm does not load ({error})",
            expected="config.json and safetensors that fit each other",
            next_step="Delete the folder and run dvc repro convert.",
        ) from error


def add_adapter(model: nn.Module, folder: Path) -> None:
    """Put a trained adapter on a base model."""
    try:
        load_adapters(model, str(folder))
    except (ValueError, OSError, RuntimeError, KeyError, AttributeError, json.JSONDecodeError) as error:
        raise SqloraError(
            folder,
            found=f"an adapter that does not fit the base model ({error})",
            expected="adapters.safetensors and adapter_config.json made for this base model",
            next_step="Delete the folder and run dvc repro train.",
        ) from error
    model.eval()


def context_length(config: dict[str, Any]) -> int:
    """How many tokens the model computes correctly.

    mlx-lm applies a sliding window to the layers that `layer_types` names and ignores it where there is no such list;
    it makes no odds below the window, so there the window is the limit.
    """
    windowed = "sliding_attention" in (config.get("layer_types") or ())
    limits: Iterable[Any] = (None if windowed else config.get("sliding_window"), config.get("max_position_embeddings"))
    return min((limit for limit in limits if limit), default=4096)
