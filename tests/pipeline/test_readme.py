"""README's walk-through: its commands run, and the output that it shows is theirs."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from contract import ROOT
from project import Project

from sqlora.demo_data.generator import write_demo_archive
from sqlora.fetch.archive import extract
from sqlora.jsonl import write_jsonl
from sqlora.params.all import check_params
from sqlora.split.draw import draw_split, write_split
from sqlora.text import read_examples
from sqlora.wikisql.layout import PARTS

README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = tuple(f"{part}{ending}" for part in PARTS for ending in (".jsonl", ".tables.jsonl"))
# What cannot run here, and where else it does: make demo in benchmarks/demo.py, make test is what runs this, the
# environment is there, and Mistral-7B takes a GPU and a download. `make` prepares machines and remotes in other tests.
ELSEWHERE = ("make ", "source ", "cp profiles/mistral", "pip install")
WAITING = ("--interactive",)  # reads questions


def commands(text: str) -> list[str]:
    """The indented commands of a text, in their order, without comments."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE).replace("\\\n", "")
    lines = re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    return [re.sub(r"\s+#\s.*", "", line) for line in lines]


@pytest.fixture(scope="module")
def walked(original: Project, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Command -> what it printed, of all commands of README that run here, in README's order."""
    folder = tmp_path_factory.mktemp("readme") / "copy"
    shutil.copytree(original.folder, folder, symlinks=True)
    shutil.copytree(ROOT / "profiles", folder / "profiles")
    (folder / "players.csv").write_text("Player,School,Points\nAnn Lee,Lyon,7\nBo Day,Ajax,9\n")
    with sqlite3.connect(folder / "league.db") as database:
        database.execute("CREATE TABLE players (Player TEXT, Points REAL)")
        database.execute("INSERT INTO players VALUES ('Ann Lee', 7)")
    database.close()
    project = Project(folder)
    for words in ("config user.email a@example.org", "config user.name a", "add -A", "commit -q -m start"):
        assert project.run("git", *words.split()).returncode == 0
    printed = {}
    for command in commands(README):
        if command.startswith(ELSEWHERE):
            continue
        line = command.replace("/path/or/s3://bucket", str(folder.parent / "remote"))
        if any(word in command for word in WAITING):
            line = f"echo 'Who plays for Ajax?' | {line}"
        done = project.run("bash", "-c", line)
        # A random model seldom answers with a query, which `ask` says with status 1.
        asked = command.startswith("python -m sqlora ask") and done.returncode == 1
        assert done.returncode == 0 or asked, f"{command}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, command
        assert "unrecognized arguments" not in done.stderr, command
        printed[command] = done.stdout + done.stderr
    return printed


def test_the_commands_run(walked: dict[str, str]) -> None:
    assert len(walked) > 10
    assert "didn't change, skipping" in walked["dvc repro"]
    assert "Running stage" not in walked["dvc repro"]
    assert "predicted" in walked["python -m sqlora plan"] or "memory" in walked["python -m sqlora plan"]
    assert re.search(r"train.learning_rate +0\.1 +0\.0001", walked["dvc params diff"])
    assert re.search(r"results/training.json +final_valid_loss", walked["dvc metrics diff"])
    assert "5 common test questions" in walked["python -m sqlora compare HEAD"]
    assert "pushed" in walked["dvc push"]


def test_no_command_of_another_kind_is_skipped() -> None:
    skipped = [command for command in commands(README) if command.startswith(ELSEWHERE)]
    assert {command.split()[0] for command in skipped} == {"make", "source", "cp"}


def test_the_memory_of_the_mistral_profile() -> None:
    path = "profiles/mistral-7b-1k.yaml"
    claim = re.search(
        rf"`python -m sqlora plan --params {path}` .*?([\d.]+) GB of a\s+Mac's memory, ([\d.]+) of an NVIDIA", README
    )
    assert claim
    for device, claimed in zip(("metal", "cuda"), claim.groups(), strict=True):
        command = [sys.executable, "-m", "sqlora", "plan", "--params", path, "--device", device, "--memory", "80"]
        done = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (current,) = [option for option in json.loads(done.stdout)["options"] if option["current"]]
        assert f"{current['peak_memory_gb']:.1f}" == claimed


def test_the_summary_of_the_demo_is_that_of_the_committed_results(tmp_path: Path) -> None:
    """Without minutes of training: the questions are drawn again, and errors.csv has what the adapter got wrong.

    An answer that was right is taken for the gold query, and the base model's answers are in errors.csv for as many
    questions; where they are not, the shown text is put in, so that of these only the verdict is held against the code.
    """
    params = check_params(ROOT / "profiles/demo.yaml")
    shown = README.split("ends with\n\n```\n")[1].split("```")[0]
    write_demo_archive(tmp_path / "demo.tar.bz2", params["data"].demo_seed, train_tables=params["data"].demo_tables)
    (tmp_path / "wikisql").mkdir()
    extract(tmp_path / "demo.tar.bz2", FILES, tmp_path / "wikisql", max_bytes=10**8)
    dataset = tmp_path / "artifacts/dataset"
    dataset.mkdir(parents=True)
    write_split(dataset, draw_split(tmp_path / "wikisql", params["split"]))
    with open(ROOT / "results/errors.csv", encoding="utf-8", newline="") as file:
        errors = {int(row["index"]): row for row in csv.DictReader(file)}
    examples = read_examples(dataset / "test.jsonl")
    assert all(row["gold"] == examples[index].completion.strip() for index, row in errors.items())
    base = dict(re.findall(r"^Question (\d+):.*?^  before  \S+ +(.*?)\n", shown, re.DOTALL | re.MULTILINE))
    (tmp_path / "artifacts/predictions").mkdir()
    for system, other in (("base", base), ("adapter", {})):
        completions = [
            errors[index][system] if index in errors else other.get(str(index + 1), example.completion)
            for index, example in enumerate(examples)
        ]
        write_jsonl(
            tmp_path / f"artifacts/predictions/{system}.jsonl",
            (
                {"index": index, "completion": completion, "stopped": True, "tokens": 9, "closed": False}
                for index, completion in enumerate(completions)
            ),
        )
    (tmp_path / "results").mkdir()
    shutil.copy(ROOT / "results/details.json", tmp_path / "results")
    shutil.copy(ROOT / "profiles/demo.yaml", tmp_path / "params.yaml")
    command = [sys.executable, "-m", "sqlora", "summary"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == shown
