"""dvc.yaml and export/dvc.yaml against the code: a stage lists what it needs, no more and no less."""

from __future__ import annotations

import importlib.util
import re
import sys
from typing import Any

import pytest
from contract import ROOT, SOURCE, first_party_files
from ruamel.yaml import YAML

from sqlora.params.all import SECTIONS
from sqlora.stage import stage_contract

Stages = dict[str, dict[str, Any]]


def read_stages(path: str) -> Stages:
    stages: Stages = YAML(typ="safe").load((ROOT / path).read_text())["stages"]
    return stages


STAGES = read_stages("dvc.yaml")
EXPORT_STAGES = read_stages("export/dvc.yaml")
ALL_STAGES = STAGES | EXPORT_STAGES


def script_of(stage: dict[str, Any]) -> str:
    found = re.search(r"\bpython ((?:stages|export)/\w+\.py)", stage["cmd"])
    assert found
    return found.group(1)


def names(entries: list[Any]) -> list[str]:
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


@pytest.mark.parametrize("name", ALL_STAGES)
def test_deps_are_the_modules_that_the_script_imports(name: str) -> None:
    stage = ALL_STAGES[name]
    script = script_of(stage)
    code = [dep for dep in stage["deps"] if dep.startswith(("src/", "stages/")) or dep.endswith(".py")]
    assert sorted(code) == sorted(first_party_files(ROOT / script))
    assert len(set(stage["deps"])) == len(stage["deps"])


@pytest.mark.parametrize("name", ALL_STAGES)
def test_params_are_the_sections_that_the_script_reads(name: str) -> None:
    stage = ALL_STAGES[name]
    path = ROOT / script_of(stage)
    spec = importlib.util.spec_from_file_location(f"stage_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    paths, sections = stage_contract(module.main)
    assert sorted(stage.get("params", [])) == sorted(sections)
    assert all(SECTIONS[section] is kind for section, kind in sections.items())
    given = re.findall(r"--([a-z-]+) (\S+)", stage["cmd"])
    options = {option.replace("-", "_") for option, _ in given}
    assert {path for path, required in paths.items() if required} <= options <= set(paths)
    # Every path on the command line is an output, or a dep or the folder of one.
    produced = names(stage.get("outs", [])) + names(stage.get("metrics", [])) + names(stage.get("plots", []))
    for _, value in given:
        assert value in produced or any(dep == value or dep.startswith(value + "/") for dep in stage["deps"]), value


def test_nothing_switches_the_run_cache_off() -> None:
    for path in ("dvc.yaml", "export/dvc.yaml"):
        text = (ROOT / path).read_text()
        for word in ("persist", "always_changed", "frozen", "://"):
            assert word not in text
    for stage in ALL_STAGES.values():
        assert stage["deps"]


def test_every_script_belongs_to_a_stage_and_every_section_to_a_script() -> None:
    for stages, folder in ((STAGES, "stages"), (EXPORT_STAGES, "export")):
        assert {script_of(stage) for stage in stages.values()} == {
            path.relative_to(ROOT).as_posix() for path in (ROOT / folder).glob("*.py")
        }
    assert {section for stage in STAGES.values() for section in stage.get("params", [])} == set(SECTIONS)


def test_package_markers_are_empty_so_that_deps_may_leave_them_out() -> None:
    for path in SOURCE.rglob("__init__.py"):
        assert path.stat().st_size == 0, path


def test_exports_have_names_of_their_own_and_paths_from_the_projects_folder() -> None:
    assert not STAGES.keys() & EXPORT_STAGES.keys()
    for stage in EXPORT_STAGES.values():
        assert stage["wdir"] == ".."
        # They stay out of the cache and the remote: each is as large as the model, and is made again from it.
        assert all(out.startswith("export/") for out in names(stage["outs"]))
        assert all(list(out.values()) == [{"cache": False}] for out in stage["outs"])
