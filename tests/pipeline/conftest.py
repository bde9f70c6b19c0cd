"""The project that all pipeline tests start from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from project import Project, make_project


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, set[str]]:
    """A project in which everything has run once, and the stages that ran."""
    project = make_project(tmp_path_factory.mktemp("project"))
    return project, project.repro()


@pytest.fixture(scope="session")
def original(finished: tuple[Project, set[str]]) -> Project:
    """A project in which everything has run once; not to be changed."""
    return finished[0]
