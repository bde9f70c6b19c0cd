"""Every section of params.yaml, for checks of the whole file. Stages import their own sections only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlora.params.convert import ConvertParams
from sqlora.params.data import DataParams
from sqlora.params.generate import GenerateParams
from sqlora.params.lora import LoraParams
from sqlora.params.model import ModelParams
from sqlora.params.reader import read_params
from sqlora.params.score import ScoreParams
from sqlora.params.split import SplitParams
from sqlora.params.train import TrainParams

SECTIONS: dict[str, type] = {
    "model": ModelParams,
    "convert": ConvertParams,
    "data": DataParams,
    "split": SplitParams,
    "lora": LoraParams,
    "train": TrainParams,
    "generate": GenerateParams,
    "score": ScoreParams,
}


def check_params(path: Path) -> dict[str, Any]:
    """Read the whole file; raises SqloraError that lists everything wrong with it."""
    return read_params(path, SECTIONS, only=True)
