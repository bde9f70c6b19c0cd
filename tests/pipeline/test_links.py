"""Artifacts that share their bytes with DVC's cache: which link is chosen, and that no stage writes through one."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from project import Project
from small_pipeline import make_small_pipeline
from team import clone, copy_of, fails, md5_of, must, object_path

from sqlora.errors import SqloraError
from sqlora.sharing.links import setup_cache, working_links

AFTER_TRAINING = {"train", "generate_adapter", "score", "report"}
ADAPTER = "artifacts/adapter/adapters.safetensors"


@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_stages_leave_the_cache_alone_when_artifacts_are_links_into_it(
    original: Project, tmp_path: Path, link: str
) -> None:
    project = copy_of(original, tmp_path / "copy")
    before = {path: path.read_bytes() for path in (project.folder / ".dvc/cache/files").rglob("*") if path.is_file()}
    printed = must(project, "python", "-m", "sqlora", "setup-cache", "--type", link)
    assert f"-> {link}" in printed
    weights = project.folder / ADAPTER
    assert is_link(project, weights, link)
    assert project.repro() == set()
    project.set(train__iterations=3)
    assert project.repro() == AFTER_TRAINING
    assert is_link(project, weights, link)
    # Stages that are run by hand find their old outputs in place, and have others to write: beside them, then renamed.
    project.set(convert__dtype="bfloat16", split__train_size=13, train__iterations=1)
    for stage in ("convert", "split", "train"):
        must(project, *must(project, "python", "-c", COMMAND.format(stage)).split())
        assert not is_link(project, weights, link) or stage != "train"
    assert {"convert", "split", "train"} <= project.repro()
    assert {path: path.read_bytes() for path in before} == before
    assert "0 damaged" in must(project, "python", "-m", "sqlora", "verify")


COMMAND = """
import re, sys
from ruamel.yaml import YAML
command = YAML(typ="safe").load(open("dvc.yaml"))["stages"]["{}"]["cmd"]
print(re.sub(r"^([A-Z]+=\\S+ )+", "", command))
"""


def is_link(project: Project, path: Path, link: str) -> bool:
    """Whether it is one into the cache, and read-only."""
    kept = project.folder / ".dvc/cache" / object_path(md5_of(path))
    if path.is_symlink() != (link == "symlink") or stat.S_IMODE(path.stat().st_mode) != 0o444:
        return False
    return path.samefile(kept)


def test_the_best_that_works_is_chosen_and_what_was_never_pulled_stays_away(tmp_path: Path) -> None:
    project = make_small_pipeline(tmp_path / "a")
    works = working_links(project.folder / ".dvc/cache", project.folder)
    assert works[-1] == "copy"
    assert set(works) <= {"reflink", "hardlink", "symlink", "copy"}
    printed = must(project, "python", "-m", "sqlora", "setup-cache")
    assert f"-> {works[0]}" in printed
    assert must(project, "dvc", "config", "cache.type").strip() == works[0]
    # It is this machine's choice, not the team's.
    assert must(project, "git", "status", "--porcelain", "--", ".dvc").strip() == ""
    must(project, "python", "-m", "sqlora", "setup-cache", "--type", "copy")
    assert (project.folder / "data/0.bin").stat().st_nlink == 1
    empty = clone(project, tmp_path / "empty")
    must(empty, "python", "-m", "sqlora", "setup-cache")
    assert not (empty.folder / "data").exists()


def test_a_link_that_does_not_work_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make_small_pipeline(tmp_path / "a")
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    cache = elsewhere / f"sqlora-{os.getpid()}"
    try:
        must(project, "dvc", "cache", "dir", "--local", str(cache))
        assert working_links(cache, project.folder) == ["symlink", "copy"]
        printed = fails(project, "python", "-m", "sqlora", "setup-cache", "--type", "hardlink")
        assert f"found that hardlink does not work from {cache}" in printed
    finally:
        must(project, "rm", "-rf", str(cache))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SqloraError, match="expected a DVC repository"):
        setup_cache(Path(), None)
