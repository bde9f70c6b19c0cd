"""Two ranks on this machine, over loopback, write the predictions that one process writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from contract import ROOT
from ruamel.yaml import YAML

from sqlora.sql.execute import build_database
from sqlora.text import Example, write_examples
from sqlora.wikisql.form import LogicalForm
from sqlora.wikisql.layout import Table

TABLES = [Table(f"1-{n}", ("Name", f"Column {n}"), ("text", "real"), (("Ann", n), ("Bo", 3))) for n in range(7)]


def predictions(folder: Path, model: Path, **generate: Any) -> bytes:
    folder.mkdir()
    (folder / "model").symlink_to(model)
    form = LogicalForm(0, 0, ())
    rows = [Example(t.id, "where is it " * n, t.header, t.types, form) for n, t in enumerate(TABLES)]
    write_examples(folder / "test.jsonl", rows)
    build_database(folder / "tables.db", TABLES)
    yaml = YAML()
    params = yaml.load((ROOT / "params.yaml").read_text())
    params["generate"] |= {"batch_size": 2, "max_tokens": 16} | generate
    with open(folder / "params.yaml", "w") as file:
        yaml.dump(params, file)
    command = [sys.executable, str(ROOT / "stages/generate.py"), "--model", "model", "--examples", "test.jsonl"]
    command += ["--tables", "tables.db", "--out", "out.jsonl"]
    for number in range(5):  # runs that were never finished, the latest last
        (folder / f".sqlora/generate/{number}/rank-0").mkdir(parents=True)
        os.utime(folder / f".sqlora/generate/{number}/rank-0", (number, number))
        os.utime(folder / f".sqlora/generate/{number}", (number, number))
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.glob(".sqlora/generate/*")) == ["2", "3", "4"]
    return (folder / "out.jsonl").read_bytes()


def test_two_workers_write_what_one_writes(model_folder: Path, tmp_path: Path) -> None:
    settings = {"constrain": "schema", "execution_guided": 2}
    alone = predictions(tmp_path / "alone", model_folder, **settings)
    assert alone.count(b"\n") == len(TABLES)
    assert predictions(tmp_path / "two", model_folder, **settings, workers=2) == alone
