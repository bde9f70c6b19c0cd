"""What results/training.json says of machine and versions."""

from __future__ import annotations

import getpass
import platform
import socket
from importlib import metadata

import pytest

from sqlora import environment


def test_versions_and_machine() -> None:
    found = dict(environment.environment())
    assert list(found)[:4] == ["System", "Processor", "Device", "Python"]
    assert found["Python"] == platform.python_version()
    assert found["mlx"] == metadata.version("mlx")
    assert found["Processor"].endswith(" GB of memory")
    assert all(found.values())


def test_nothing_names_the_machine_or_its_user() -> None:
    text = " ".join(value for _, value in environment.environment()).lower()
    assert socket.gethostname().lower() not in text
    assert "/" not in text
    assert getpass.getuser().lower() not in text.split()


@pytest.mark.parametrize(("metal", "name"), [(True, "Chip, Metal"), (False, "Chip, CUDA")])
def test_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch, metal: bool, name: str) -> None:
    class Fake:
        gpu = "gpu"

        class metal:  # noqa: N801 - as MLX calls it
            @staticmethod
            def is_available() -> bool:
                return metal

        @staticmethod
        def default_device() -> object:
            return type("Device", (), {"type": "gpu"})()

        @staticmethod
        def device_info() -> dict[str, str]:
            return {"device_name": "Chip"}

    monkeypatch.setattr(environment, "mx", Fake)
    assert dict(environment.environment())["Device"] == name
