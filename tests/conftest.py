"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

# First of all: tests compute on the same fast BLAS as the stages.
from sqlora.mlx import mx

import pytest
import tiny_model

from sqlora.convert.model import convert_model


@pytest.fixture(scope="session")
def source_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model in Mistral's format."""
    folder = tmp_path_factory.mktemp("source") / "tiny"
    tiny_model.write_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(source_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model converted, in float32."""
    folder = tmp_path_factory.mktemp("model") / "model"
    folder.mkdir()
    convert_model(source_folder, folder, dtype="float32")
    return folder


@pytest.fixture(autouse=True)
def _fixed_random_state() -> None:
    mx.random.seed(0)
