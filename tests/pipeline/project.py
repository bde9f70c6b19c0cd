"""A small copy of the project, with a tiny random base model, in which dvc really runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny_model
from contract import ROOT
from ruamel.yaml import YAML

SMALL: dict[str, Any] = {
    "split.train_size": 12,
    "split.valid_size": 4,
    "split.test_size": 5,
    "lora.layers": 2,
    "lora.rank": 2,
    "train.iterations": 2,
    "train.batch_size": 2,
    # Far too high, so that two runs that differ in anything also differ in what they write.
    "train.learning_rate": 0.1,
    # Such a rate makes validation worse, and the best adapter would be the one before the first step.
    "train.keep": "last",
    "generate.max_tokens": 4,
}


@dataclass(frozen=True)
class Project:
    """folder: a git and dvc repository of its own."""

    folder: Path

    def set(self, **changes: Any) -> None:
        """Change keys of params.yaml, written as section__key=value."""
        yaml, path = YAML(), self.folder / "params.yaml"
        document = yaml.load(path.read_text())
        for name, value in changes.items():
            section, key = name.split("__")
            assert key in document[section], name
            document[section][key] = value
        with open(path, "w") as handle:
            yaml.dump(document, handle)

    def environment(self) -> dict[str, str]:
        """With this Python, and the project's own copy of the code where there is one."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        own = self.folder / "src"
        code = str(own if own.is_dir() else ROOT / "src")
        return os.environ | {"PATH": path, "PYTHONPATH": code, "DVC_NO_ANALYTICS": "1"}

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the project."""
        return subprocess.run(
            command, cwd=self.folder, env=self.environment(), capture_output=True, text=True, check=False
        )

    def repro(self) -> set[str]:
        """`dvc repro`; returns the stages that ran (restored ones not counted)."""
        done = self.run("dvc", "repro")
        assert done.returncode == 0, done.stdout + done.stderr
        return set(re.findall(r"^Running stage '(\w+)'", done.stdout, re.MULTILINE))


def make_project(folder: Path) -> Project:
    """Copy what `dvc repro` needs, and make the two small base models demo/base.tar and other.tar."""
    for name in ("src", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("dvc.yaml", "params.yaml", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "demo").mkdir()
    for name, seed in (("demo/base.tar", 0), ("other.tar", 1)):
        tiny_model.write_checkpoint(folder / "tiny", seed=seed)
        tiny_model.write_tar(folder / name, folder / "tiny")
        shutil.rmtree(folder / "tiny")
    project = Project(folder)
    project.set(**{name.replace(".", "__"): value for name, value in SMALL.items()})
    for command in (("git", "init", "-q"), ("dvc", "init", "-q")):
        done = project.run(*command)
        assert done.returncode == 0, done.stderr
    shutil.copytree(ROOT / ".dvc/plots", folder / ".dvc/plots", dirs_exist_ok=True)
    return project
