"""Damaged data in the split and score stages: status 1, one paragraph, and nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

REPOSITORY = Path(__file__).parents[2]
SPLIT = {"train_size": 6, "valid_size": 2, "test_size": 3, "sampling": "tables", "drop_degenerate": False, "seed": 1}


def stage(name: str, folder: Path, **paths: str) -> subprocess.CompletedProcess[str]:
    options = [word for option, path in paths.items() for word in (f"--{option}", path)]
    command = [sys.executable, str(REPOSITORY / "stages" / f"{name}.py"), *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def split(folder: Path) -> subprocess.CompletedProcess[str]:
    paths = {"wikisql": "wikisql", "model": "model", "out": "artifacts/dataset", "summary": "results/dataset.json"}
    return stage("split", folder, **paths)


def score(folder: Path) -> subprocess.CompletedProcess[str]:
    paths = {"base": "base.jsonl", "adapter": "adapter.jsonl", "out": "artifacts/scores"}
    results = {"scores": "score.json", "details": "details.json", "breakdown": "breakdown.csv", "errors": "errors.csv"}
    paths |= {option: f"results/{name}" for option, name in results.items()}
    return stage("score", folder, dataset="artifacts/dataset", **paths)


@pytest.fixture
def run_folder(tmp_path: Path, model_folder: Path) -> Path:
    """A folder with params.yaml and a small wikisql/ of 4 tables and 8 questions in each part."""
    params = YAML(typ="safe", pure=True).load(REPOSITORY / "params.yaml")
    params["split"] |= SPLIT
    (tmp_path / "params.yaml").write_text(json.dumps(params))  # JSON is YAML
    (tmp_path / "model").symlink_to(model_folder)
    (tmp_path / "wikisql").mkdir()
    for part in ("train", "dev", "test"):
        tables, questions = [], []
        for number in range(4):
            table_id = f"1-{part}-{number}"
            table = {"id": table_id, "header": ["No.", "Player"], "types": ["real", "text"], "rows": [[7, "Ann"]]}
            tables.append(json.dumps(table))
            for value in (7, 8):
                sql = {"sel": 1, "agg": 0, "conds": [[0, 0, value]]}
                questions.append(json.dumps({"table_id": table_id, "question": f"Who wears {value}?", "sql": sql}))
        (tmp_path / f"wikisql/{part}.tables.jsonl").write_text("\n".join(tables) + "\n")
        (tmp_path / f"wikisql/{part}.jsonl").write_text("\n".join(questions) + "\n")
    return tmp_path


@pytest.fixture
def scored_folder(run_folder: Path) -> Path:
    """run_folder after a split, with predictions of base and adapter."""
    assert split(run_folder).returncode == 0
    texts = [json.loads(line)["text"] for line in (run_folder / "artifacts/dataset/test.jsonl").open()]
    for name in ("base", "adapter"):
        with open(run_folder / f"{name}.jsonl", "w") as handle:
            for index, text in enumerate(texts):
                completion = text.partition("\nA:")[2] if name == "adapter" else " I do not know"
                line = {"index": index, "completion": completion, "stopped": True, "tokens": 9}
                handle.write(json.dumps(line) + "\n")
    return run_folder


def edit(path: Path, change: Callable[[list[str]], object]) -> None:
    lines = path.read_text().splitlines(keepends=True)
    change(lines)
    path.write_text("".join(lines))


def assert_fails(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    message = result.stderr.strip()
    assert message.startswith("error: ")
    assert "\n\n" not in message
    for word in (*words, "found ", "; expected "):
        assert word in " ".join(message.split())


def leftovers(folder: Path) -> list[str]:
    names = ("artifacts", "results")
    return sorted(p.relative_to(folder).as_posix() for name in names for p in (folder / name).rglob("*") if p.is_file())


def test_split_and_score_run_on_good_data(scored_folder: Path) -> None:
    result = score(scored_folder)
    assert result.returncode == 0, result.stderr
    written = json.loads((scored_folder / "results/details.json").read_text())
    shares = {"execution_accuracy", "logical_form_accuracy", "valid_sql", "stopped_at_eos"}
    assert written["examples"] == 3
    assert set(written) == {"examples", "base", "adapter", "comparison", "chart"}
    assert shares <= set(written["base"]) == set(written["adapter"])
    assert written["base"]["outcomes"] == {"bad_syntax": 3}
    assert {written["adapter"][share] for share in shares} == {1.0}
    rows = (scored_folder / "results/errors.csv").read_text().splitlines()[1:]
    assert [",bad_syntax," in row for row in rows] == [True] * 3  # examples of what the base model alone did
    expected = [
        "dataset/tables.db",
        "dataset/test.db",
        "dataset/test.jsonl",
        "dataset/train.jsonl",
        "dataset/valid.jsonl",
    ]
    expected += [f"scores/{name}" for name in ("adapter.jsonl", "base.jsonl", "changes.csv", "test.jsonl")]
    files = ("breakdown.csv", "dataset.json", "details.json", "errors.csv", "score.json")
    results = [f"results/{name}" for name in files]
    assert leftovers(scored_folder) == [f"artifacts/{name}" for name in expected] + results


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("train.jsonl", lambda lines: lines.insert(4, '{"table_id": "1-tr\n'), ("train.jsonl:5", "no JSON")),
        ("dev.tables.jsonl", lambda lines: lines.pop(2), ("dev.jsonl:5", "table 1-dev-2, which is missing")),
        (
            "test.jsonl",
            lambda lines: lines.__setitem__(1, lines[1].replace('"sel": 1', '"sel": 2')),
            ("test.jsonl:2", "sel 2", "from 0 to 1"),
        ),
        ("test.jsonl", lambda lines: lines.__delitem__(slice(2, None)), ("2 questions", "3 that split.test_size")),
        (
            "test.tables.jsonl",
            lambda lines: lines.append(lines[0].replace("1-test-0", "1-train-1")),
            ("table 1-train-1", "train.tables.jsonl"),
        ),
        (
            "test.tables.jsonl",
            lambda lines: lines.__setitem__(
                slice(None), [line.replace("[7,", "[1" + "0" * 30 + ",") for line in lines]
            ),
            ("SQLite refuses",),
        ),
    ],
)
def test_damaged_wikisql(run_folder: Path, file: str, change: Callable[[list[str]], object], words: list[str]) -> None:
    edit(run_folder / "wikisql" / file, change)
    assert_fails(split(run_folder), *words)
    assert leftovers(run_folder) == []


def test_a_part_that_is_missing(run_folder: Path) -> None:
    (run_folder / "wikisql/dev.jsonl").unlink()
    assert_fails(split(run_folder), "dev.jsonl", "No such file")
    assert leftovers(run_folder) == []


def test_a_failed_split_keeps_the_last_good_one(scored_folder: Path) -> None:
    before = {name: (scored_folder / name).read_bytes() for name in leftovers(scored_folder)}
    edit(scored_folder / "wikisql/test.jsonl", lambda lines: lines.append("{"))
    assert_fails(split(scored_folder), "test.jsonl:9")
    assert {name: (scored_folder / name).read_bytes() for name in leftovers(scored_folder)} == before


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("base.jsonl", lambda lines: lines.__setitem__(1, lines[1][:20] + "\n"), ("base.jsonl:2", "no JSON")),
        ("adapter.jsonl", lambda lines: lines.pop(), ("adapter.jsonl", "2 predictions", "expected 3")),
        ("adapter.jsonl", lambda lines: lines.reverse(), ("adapter.jsonl:1", "index 2")),
        (
            "artifacts/dataset/test.jsonl",
            lambda lines: lines.__setitem__(2, lines[2].replace('"sel": 1', '"sel": 0')),
            ("test.jsonl:3", "differs from the logical form"),
        ),
    ],
)
def test_damaged_predictions(
    scored_folder: Path, file: str, change: Callable[[list[str]], object], words: list[str]
) -> None:
    edit(scored_folder / file, change)
    assert_fails(score(scored_folder), *words)
    assert "results/score.json" not in leftovers(scored_folder)
    assert "results/errors.csv" not in leftovers(scored_folder)


def test_a_database_that_is_gone_or_another(scored_folder: Path) -> None:
    db = scored_folder / "artifacts/dataset/tables.db"
    db.write_bytes(b"SQLite format 4" * 100)
    assert_fails(score(scored_folder), "tables.db", "a file of another kind")
    db.unlink()
    assert_fails(score(scored_folder), "tables.db", "no such file")
    assert not db.exists()
    assert "results/score.json" not in leftovers(scored_folder)
