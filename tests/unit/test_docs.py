"""The documents against the code: what they name exists, and what they list is complete."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from contract import ROOT

from sqlora.params.all import SECTIONS

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "demo" / "MODEL_CARD.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def test_the_parameter_table_has_every_key_and_no_other() -> None:
    keys = {f"{name}.{field.name}" for name, section in SECTIONS.items() for field in dataclasses.fields(section)}
    rows = README.split("## Parameters")[1].split("## ")[0]
    listed = {
        key
        for line in rows.splitlines()
        if line.startswith("| `")
        for key in re.findall(r"`(\w+\.\w+)`", line.split("|")[1])
    }
    assert listed == keys


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_a_document_names_exist(path: Path) -> None:
    text = re.sub(r"```json.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    named = re.findall(r"\]\(((?!https?:)[^)#]+)\)", text)
    named += re.findall(r"\b((?:docs|profiles|benchmarks|demo|stages|tests|src)/[\w/.-]+\.\w+)\b", text)
    assert named or path.name == "benchmarks.md"
    for name in named:
        assert (ROOT / name).exists() or (path.parent / name).exists(), f"{path.name} names {name}"


def test_the_tree_shows_what_is_there() -> None:
    tree = README.split("## What is where")[1].split("```")[1]
    shown = set(re.findall(r"^(\w+)/", tree, re.MULTILINE)) - {"artifacts"}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    there = {line.split("/")[0] for line in tracked.splitlines() if "/" in line and not line.startswith((".", '"'))}
    assert shown == there
    for name in re.findall(r"([\w.]+\.py)\b", tree):
        assert (ROOT / "src" / "sqlora" / name).is_file(), name
    packages = {path.name for path in (ROOT / "src" / "sqlora").iterdir() if (path / "__init__.py").exists()}
    assert packages == set(re.findall(r"(\w+)/ ", tree.split("src/sqlora/")[1].split("\ndemo/")[0]))


def test_the_figures_of_the_demo_are_those_of_the_committed_results() -> None:
    score = json.loads((ROOT / "results" / "score.json").read_text())
    block = README.split("ends with")[1].split("```")[1]
    assert f"{score['examples']} test questions" in block
    for name in ("execution_accuracy", "logical_form_accuracy", "valid_sql", "stopped_at_eos"):
        row = next(line for line in block.splitlines() if line.lower().startswith(name.split("_")[0]))
        assert re.findall(r"([\d.]+)%", row) == [f"{100 * score[side][name]:.1f}" for side in ("base", "adapter")]


def test_every_stage_is_described() -> None:
    stages = re.findall(r"^  (\w+):$", (ROOT / "dvc.yaml").read_text(), re.MULTILINE)
    assert len(stages) == 9
    for stage in stages:
        assert f"`{stage}`" in README, stage


MEMORY = (ROOT / "docs" / "guides" / "memory.md").read_text(encoding="utf-8")


def plan(*words: str) -> str:
    """What `python -m sqlora plan` prints with these options; status 1 says only that the settings do not fit."""
    command = [sys.executable, "-m", "sqlora", "plan", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.stderr
    return done.stdout


def test_the_memory_guide_shows_what_the_plan_prints() -> None:
    match = re.search(r"^    python -m sqlora plan (--params .*)\n\n```\n(.*?)^```$", MEMORY, re.DOTALL | re.MULTILINE)
    assert match
    words, table = match.groups()
    assert table in plan(*words.split())


def test_the_memory_guide_names_what_the_plan_predicts() -> None:
    """The same profile's figures in the guide's sentences."""

    def options(device: str) -> dict[tuple[Any, ...], dict[str, Any]]:
        words = f"--params profiles/mistral-7b-1k.yaml --device {device} --memory 80 --json"
        keys = ("batch_size", "layers", "quantize", "gradient_checkpointing")
        return {tuple(map(option.get, keys)): option for option in json.loads(plan(*words.split()))["options"]}

    metal, cuda = options("metal"), options("cuda")
    peaks = {kind: option["peak_memory_gb"] for kind, option in metal.items()}
    recipe, small, quantized, little = (
        peaks[kind] for kind in ((4, 16, None, False), (1, 16, None, False), (4, 16, 4, False), (1, 4, None, False))
    )
    phase = metal[4, 16, None, False]["phases_gb"]["training"]
    least, least_cuda = (min(option["peak_memory_gb"] for option in found.values()) for found in (metal, cuda))
    text = " ".join(MEMORY.split())
    for claim in (
        f"({phase['weights']:.1f} of the {recipe:.1f} GB)",
        f"keeps for the way back ({phase['kept for the way back']:.1f} GB:",
        f"the cells with {least:.2f} in the table above, and {least_cuda:.2f} on CUDA",
        f"found settings that need {recipe:.2f} GB of memory",
        f"Set train.batch_size 1, train.gradient_accumulation 4 ({small:.2f} GB)",
        f"{recipe:.1f} GB with the same settings",
        f"{small:.1f} GB with batch 1, {quantized:.1f} GB with 4-bit weights",
        f"batch 1 and 4 layers, takes {little:.1f} GB",
    ):
        assert claim in text, claim
