"""A repository with a pipeline of two stages that takes no time: 200 files, and their list."""

from __future__ import annotations

from pathlib import Path

from project import Project
from team import commit, must

MAKE = """
import pathlib, random, time
from ruamel.yaml import YAML

params = YAML(typ="safe").load(pathlib.Path("params.yaml").read_text())
pathlib.Path("started").touch()
while params["wait"] and not pathlib.Path("go").exists():
    time.sleep(0.01)
data = pathlib.Path("data")
data.mkdir()
numbers = random.Random(params["seed"])
for i in range(200):
    (data / f"{i}.bin").write_bytes(numbers.randbytes(50_000))
"""
PIPELINE = """
stages:
  make:
    cmd: python make.py
    deps: [make.py]
    params: [seed, wait]
    outs: [data]
  list:
    cmd: ls data > list.txt
    deps: [data]
    outs: [list.txt]
"""
OBJECTS = 202  # 200 files, the folder's listing, list.txt


def make_small_pipeline(folder: Path, *, seed: int = 1) -> Project:
    """Everything has run and is committed."""
    folder.mkdir()
    project = Project(folder)
    (folder / "make.py").write_text(MAKE)
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / ".gitignore").write_text("/started\n/go\n")
    set_params(project, seed=seed)
    must(project, "git", "init", "--quiet")
    must(project, "dvc", "init", "--quiet")
    must(project, "dvc", "repro", "--quiet")
    commit(project, "a run")
    return project


def set_params(project: Project, *, seed: int, wait: bool = False) -> None:
    (project.folder / "params.yaml").write_text(f"seed: {seed}\nwait: {str(wait).lower()}\n")
