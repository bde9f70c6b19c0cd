"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

# First of all: tests compute on the same fast BLAS as the stages.
from sqlora.mlx import mx

import pytest
import tiny_model
from web_server import WebServer

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


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder of a test whose runs leave `.sqlora` there."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _fixed_random_state() -> None:
    mx.random.seed(0)


@pytest.fixture
def server() -> Iterator[WebServer]:
    """A web server on this machine that behaves as badly as a test wants."""
    server = WebServer()
    yield server
    server.close()


@pytest.fixture
def fetching_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a test that downloads from this machine, without waiting between attempts."""
    monkeypatch.chdir(tmp_path)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")
    monkeypatch.setattr("sqlora.fetch.download.BACKOFF_SECONDS", 0.001)
    return tmp_path
