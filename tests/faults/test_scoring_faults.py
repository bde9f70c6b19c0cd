"""The score stage when answers are hostile, when its SQL process dies, and when it is killed itself."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from hostile_statements import FAILING
from ruamel.yaml import YAML

from sqlora.jsonl import write_jsonl
from sqlora.sql.execute import build_database
from sqlora.text import Example, write_examples
from sqlora.wikisql.layout import LogicalForm, Table

REPOSITORY = Path(__file__).parents[2]
TABLE = Table("1-10-1", ("a", "b"), ("text", "real"), tuple((f"x{number}", number) for number in range(200)))
GOLD = Example(TABLE.id, "Which a?", TABLE.header, TABLE.types, LogicalForm(0, 0, ((1, 1, 197),)))
OUTPUTS = {
    "out": "artifacts/scores",
    "scores": "results/score.json",
    "details": "results/details.json",
    "breakdown": "results/breakdown.csv",
    "errors": "results/errors.csv",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "dataset").mkdir()
    build_database(tmp_path / "dataset/tables.db", [TABLE])
    return tmp_path


def prepare(folder: Path, answers: list[str], *, execute: str) -> None:
    params = YAML(typ="safe", pure=True).load(REPOSITORY / "params.yaml")
    params["score"]["execute"] = execute
    (folder / "params.yaml").write_text(json.dumps(params))
    write_examples(folder / "dataset/test.jsonl", [GOLD] * len(answers))
    for name in ("base", "adapter"):
        lines = (
            {"index": index, "completion": answer, "stopped": True, "tokens": 9} for index, answer in enumerate(answers)
        )
        write_jsonl(folder / f"{name}.jsonl", lines)


def start(folder: Path) -> subprocess.Popen[str]:
    paths = {"dataset": "dataset", "base": "base.jsonl", "adapter": "adapter.jsonl", **OUTPUTS}
    options = [word for option, path in paths.items() for word in (f"--{option}", path)]
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "stages/score.py"), *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcomes(folder: Path) -> dict[str, int]:
    counts: dict[str, int] = json.loads((folder / "results/details.json").read_text())["adapter"]["outcomes"]
    return counts


def worker_of(process: subprocess.Popen[str]) -> psutil.Process | None:
    try:
        children = psutil.Process(process.pid).children()
        return next(child for child in children if any("worker.py" in word for word in child.cmdline()))
    except (psutil.Error, StopIteration):
        return None


def test_hostile_answers_cost_themselves_only(folder: Path) -> None:
    # Half a hundred of the shorter ones, each between two good answers; a lone surrogate cannot stand in a JSON file.
    hostile = [sql for _, sql, _ in FAILING if len(sql) < 500 and sql.isprintable() and sql.isascii()][:50]
    assert len(hostile) == 50
    answers = [text for sql in hostile for text in (sql.replace("{folder}", str(folder)), GOLD.completion)]
    prepare(folder, answers, execute="text")
    before = hashlib.sha256((folder / "dataset/tables.db").read_bytes()).digest()
    names = {path.name for path in folder.iterdir()}
    process = start(folder)
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    scores = json.loads((folder / "results/details.json").read_text())["adapter"]
    assert scores["execution_accuracy"] == 0.5
    assert sum(scores["outcomes"].values()) == 100
    assert hashlib.sha256((folder / "dataset/tables.db").read_bytes()).digest() == before
    assert {path.name for path in folder.iterdir()} == names | {"artifacts", "results"}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
def test_a_worker_that_dies_is_replaced(folder: Path, how: signal.Signals) -> None:
    prepare(folder, [GOLD.completion] * 20_000, execute="form")
    process = start(folder)
    killed = set()
    while process.poll() is None and len(killed) < 3:
        worker = worker_of(process)
        if worker and worker.pid not in killed:
            time.sleep(0.2)  # in the middle of its work
            worker.send_signal(how)
            killed.add(worker.pid)
        time.sleep(0.01)
    _, stderr = process.communicate(timeout=240)
    assert len(killed) == 3
    assert process.returncode == 0, stderr
    assert outcomes(folder) == {"ok": 20_000}


def test_scoring_killed_midway_leaves_nothing_and_can_be_repeated(folder: Path) -> None:
    prepare(folder, [GOLD.completion] * 20_000, execute="form")
    process = start(folder)
    while not worker_of(process):
        assert process.poll() is None
        time.sleep(0.01)
    worker = worker_of(process)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not any((folder / path).exists() for path in OUTPUTS.values())
    if worker:
        worker.wait(timeout=60)  # it ends with its host
    prepare(folder, [GOLD.completion] * 10, execute="form")
    again = start(folder)
    _, stderr = again.communicate(timeout=240)
    assert again.returncode == 0, stderr
    assert outcomes(folder) == {"ok": 10}
    assert not list((folder / "results").glob(".partial*"))
