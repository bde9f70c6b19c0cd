"""What a user sees whose params.yaml is wrong: one paragraph, status 1, nothing done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from contract import ROOT

GOOD = (ROOT / "profiles" / "demo.yaml").read_text()


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  rank: 8\n", "", "lora.rank: is missing; allowed is a whole number at least 1"),
        ("  rank: 8\n", "  rnak: 8\n", "lora.rnak: is not a key (did you mean rank?)"),
        ("  rank: 8\n", "  rank: eight\n", "lora.rank: is 'eight'; allowed is a whole number"),
        ("  rank: 8\n", "  rank: 0\n", "lora.rank: is 0; allowed is a whole number at least 1"),
        ("lora:\n", "lroa:\n", "lroa: is not a section (did you mean lora?)"),
        ("  rank: 8\n", "  rank: [8\n", "no valid YAML"),
    ],
    ids=["missing", "misspelt", "mistyped", "out of range", "section", "not YAML"],
)
def test_a_stage_that_does_not_use_the_section_refuses_as_well(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in GOOD
    (tmp_path / "params.yaml").write_text(GOOD.replace(old, new))
    check = run(tmp_path, "-m", "sqlora", "check")
    stage = run(tmp_path, str(ROOT / "stages" / "fetch_data.py"), "--out", "artifacts/wikisql")
    for done in (check, stage):
        assert done.returncode == 1
        text = " ".join(done.stderr.split())
        assert text.startswith("error: params.yaml: found")
        assert message in text
        assert "expected" in text
        assert "Traceback" not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["params.yaml"]


def test_a_good_file_passes_silently(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(GOOD)
    done = run(tmp_path, "-m", "sqlora", "check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_more_lora_layers_than_the_model_has(tmp_path: Path, model_folder: Path) -> None:
    (tmp_path / "params.yaml").write_text(GOOD)
    example = (
        '{"text": "table: 1-2\\ncolumns: a\\nQ: q\\nA: SELECT a FROM 1-2", "table_id": "1-2", "question": "q", '
        '"header": ["a"], "types": ["text"], "sql": {"sel": 0, "agg": 0, "conds": []}}\n'
    )
    (tmp_path / "examples.jsonl").write_text(example)
    outputs = ["--out", "adapter", "--metrics", "training.json", "--loss", "loss.csv"]
    done = run(
        tmp_path,
        str(ROOT / "stages" / "train.py"),
        "--model",
        str(model_folder),
        *["--examples", "examples.jsonl", "--valid", "examples.jsonl"],
        *outputs,
    )
    assert done.returncode == 1
    assert "lora.layers: found 8; expected at most 3" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not any((tmp_path / name).exists() for name in outputs[1::2])


def test_a_package_that_is_not_installed_is_named(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(GOOD)
    code = (
        "import sys; sys.modules['mlx'] = None\n"
        "from sqlora.stage import run\n"
        "def work():\n    import mlx.core\n"
        "run(work)"
    )
    done = run(tmp_path, "-c", code)
    assert done.returncode == 1
    assert "requirements.txt" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "error", ["OSError(28, 'No space left on device', 'model')", "RuntimeError('IO: No space left on device')"]
)
def test_a_full_disk_is_no_bug(tmp_path: Path, error: str) -> None:
    done = run(tmp_path, "-c", f"from sqlora.stage import run\ndef work():\n    raise {error}\nrun(work)")
    assert done.returncode == 1
    assert "no space left" in done.stderr
    assert "may be a bug" not in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unexpected_error_is_one_paragraph_with_the_details_in_a_file(tmp_path: Path) -> None:
    done = run(tmp_path, "-c", "from sqlora.stage import run\ndef work():\n    return 1 / 0\nrun(work)")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in (tmp_path / ".sqlora" / "crash.txt").read_text()


def test_who_reads_the_output_may_stop_reading() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "sqlora", "plan", "--shape", "demo"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141
