"""stages/report.py and `python -m sqlora summary` as commands, on what the other stages write."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sqlora.jsonl import write_jsonl
from sqlora.split.describe import describe
from sqlora.split.draw import Split, write_split
from sqlora.text import Example
from sqlora.tokenizer import Tokenizer
from sqlora.wikisql.layout import LogicalForm, Table

REPOSITORY = Path(__file__).parents[2]
TABLE = Table("1-10-1", ("No.", "Player"), ("real", "text"), ((7, "Ann"), (8, "Bob")))
TRAINING = {
    "iterations": 20,
    "final_train_loss": 0.5,
    "final_valid_loss": 0.6,
    "first_valid_loss": 5.0,
    "tokens_per_second": 900.0,
    "peak_memory_gb": 0.8,
    "trainable_parameters": 1000,
    "total_parameters": 100_000,
}
PATHS = {
    "dataset": "artifacts/dataset",
    "base": "artifacts/predictions/base.jsonl",
    "adapter": "artifacts/predictions/adapter.jsonl",
}


def command(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )


def stage(folder: Path, name: str, **paths: str) -> subprocess.CompletedProcess[str]:
    options = [word for option, path in (PATHS | paths).items() for word in (f"--{option}", path)]
    return command(folder, str(REPOSITORY / "stages" / f"{name}.py"), *options)


def report(folder: Path) -> subprocess.CompletedProcess[str]:
    return stage(
        folder,
        "report",
        scores="results/details.json",
        breakdown="results/breakdown.csv",
        training="results/training.json",
        loss="results/loss.csv",
        summary="results/dataset.json",
        out="results/report.html",
    )


@pytest.fixture
def run_folder(tmp_path: Path, model_folder: Path) -> Path:
    """A folder as it is before the report stage: 24 questions, the adapter right on the first half."""
    examples = [
        Example(TABLE.id, f"Who wears {number}?", TABLE.header, TABLE.types, LogicalForm(1, 0, ((0, 0, number),)))
        for number in range(7, 31)
    ]
    split = Split(dict.fromkeys(("train", "valid", "test"), examples), [TABLE])
    for folder in ("artifacts/dataset", "artifacts/predictions", "results"):
        (tmp_path / folder).mkdir(parents=True)
    write_split(tmp_path / "artifacts/dataset", split)
    description = describe(split, tmp_path / "artifacts/dataset/tables.db", Tokenizer(model_folder))
    (tmp_path / "results/dataset.json").write_text(json.dumps(description))
    for name in ("base", "adapter"):
        write_jsonl(
            tmp_path / PATHS[name],
            (
                {
                    "index": index,
                    "completion": example.completion if name == "adapter" and index < 12 else "<script>\n",
                    "stopped": True,
                    "tokens": 9,
                }
                for index, example in enumerate(examples)
            ),
        )
    (tmp_path / "results/training.json").write_text(json.dumps(TRAINING))
    header = "iteration,train_loss,valid_loss,tokens_per_second,peak_memory_gb"
    (tmp_path / "results/loss.csv").write_text(f"{header}\n0,,5.0,,0.4\n20,0.5,0.6,900.0,0.8\n")
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    results = {name: f"results/{name}" for name in ("score.json", "details.json", "breakdown.csv", "errors.csv")}
    scored = stage(
        tmp_path,
        "score",
        out="artifacts/scores",
        scores=results["score.json"],
        details=results["details.json"],
        breakdown=results["breakdown.csv"],
        errors=results["errors.csv"],
    )
    assert scored.returncode == 0, scored.stderr
    return tmp_path


def test_writes_the_same_page_twice(run_folder: Path) -> None:
    first = report(run_folder)
    assert first.returncode == 0, first.stderr
    page = run_folder / "results/report.html"
    html = page.read_bytes()
    assert html.count(b"<article") == 20
    assert '50.0%</span> <span class="count">12 of 24' in html.decode()
    assert b"<script" not in html
    assert b"</html>" in html[-10:]
    page.unlink()
    assert report(run_folder).returncode == 0
    assert page.read_bytes() == html


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("results/details.json", "found no such file"),
        ("results/loss.csv", "found no such file"),
        ("results/dataset.json", "found no such file"),
        ("artifacts/predictions/base.jsonl", "No such file"),
    ],
)
def test_a_missing_input_leaves_the_old_page(run_folder: Path, name: str, message: str) -> None:
    (run_folder / name).unlink()
    (run_folder / "results/report.html").write_text("old")
    result = report(run_folder)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {name}: ")
    assert message in result.stderr
    assert "dvc repro" in result.stderr
    assert "Traceback" not in result.stderr
    assert (run_folder / "results/report.html").read_text() == "old"


def test_summary_command(run_folder: Path) -> None:
    shown = command(run_folder, "-m", "sqlora", "summary", PYTHONIOENCODING="utf-8")
    assert shown.returncode == 0, shown.stderr
    assert "Execution accuracy                  0.0% (0)          50.0% (12)" in shown.stdout
    assert shown.stdout.count("  before  bad_syntax      <script>") == 3
    assert "  after   right           SELECT Player FROM 1-10-1 WHERE No. = 7" in shown.stdout
    # A terminal that cannot show a sign gets a question mark, not a crash.
    (run_folder / PATHS["base"]).write_text((run_folder / PATHS["base"]).read_text().replace("<script>", "日\\n本"))
    plain = command(run_folder, "-m", "sqlora", "summary", PYTHONIOENCODING="ascii")
    assert plain.returncode == 0, plain.stderr
    assert "  before  bad_syntax      ???" in plain.stdout


def test_summary_before_a_run(tmp_path: Path) -> None:
    result = command(tmp_path, "-m", "sqlora", "summary")
    assert result.returncode == 1
    assert result.stderr.startswith("error: results/details.json: found no such file")
    assert " ".join(result.stderr.split()).endswith("Run dvc repro at the top of the repository.")


def test_summary_loads_neither_mlx_nor_matplotlib(run_folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from sqlora.report.summary import print_summary; print_summary(Path());"
        "sys.exit(bool({'mlx', 'matplotlib', 'torch'} & set(sys.modules)))"
    )
    result = command(run_folder, "-c", code)
    assert result.returncode == 0, result.stderr
