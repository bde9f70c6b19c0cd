"""A folder in which the train stage can run on a tiny model, and what a run left there."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from contract import ROOT
from ruamel.yaml import YAML
from safetensors.numpy import load_file

from sqlora.text import Example, write_examples
from sqlora.wikisql.form import LogicalForm

COMMAND = [sys.executable, str(ROOT / "stages/train.py"), "--model", "model"]
COMMAND += ["--examples", "train.jsonl", "--valid", "valid.jsonl", "--out", "adapter"]
COMMAND += ["--metrics", "training.json", "--loss", "loss.csv"]


class TrainProject:
    """params.yaml, the splits and a link to a converted model in one folder; each run starts from its `.sqlora`."""

    def __init__(self, folder: Path, model: Path, *, examples: int = 24) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        (folder / "model").symlink_to(model)
        write_examples(folder / "train.jsonl", rows(examples, seed=1))
        write_examples(folder / "valid.jsonl", rows(5, seed=2))

    def write_params(self, *, lora: dict[str, Any] | None = None, **train: Any) -> None:
        yaml = YAML()
        params = yaml.load((ROOT / "params.yaml").read_text())
        params["lora"] |= {"layers": 1, "rank": 4, "dropout": 0.0} | (lora or {})
        params["train"] |= {"batch_size": 4, "iterations": 12, "learning_rate": 1e-2, "max_gradient_norm": 1.0}
        params["train"] |= {"report_every": 2, "validate_every": 4, "checkpoint_every": 4, "seed": 3} | train
        with open(self.folder / "params.yaml", "w") as file:
            yaml.dump(params, file)

    def start(self, **options: Any) -> subprocess.Popen[str]:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        return subprocess.Popen(COMMAND, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, **options)

    def run(self, **train: Any) -> None:
        """Train to the end."""
        self.write_params(**train)
        process = self.start()
        output, errors = process.communicate()
        assert process.returncode == 0, output + errors

    def losses(self) -> dict[int, list[float | None]]:
        """Iteration -> training loss and both validation losses."""
        with open(self.folder / "loss.csv", newline="") as file:
            return {
                int(row["iteration"]): [
                    float(row[name]) if row[name] else None
                    for name in ("train_loss", "valid_loss_completion", "valid_loss_all", "gradient_norm")
                ]
                for row in csv.DictReader(file)
            }

    def adapter(self) -> np.ndarray:
        """All of its numbers."""
        arrays = load_file(self.folder / "adapter/adapters.safetensors")
        return np.concatenate([arrays[name].reshape(-1) for name in sorted(arrays)])

    def summary(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads((self.folder / "training.json").read_text())
        return result

    def newest(self) -> int:
        """The last step that has a whole checkpoint."""
        names = [path.name for path in self.folder.glob(".sqlora/train/*/step-*")]
        return max((int(name.removeprefix("step-")) for name in names), default=0)


def rows(count: int, seed: int) -> list[Example]:
    """Questions of many lengths."""
    rng = random.Random(seed)
    result = []
    for number in range(count):
        header = tuple(rng.choice(["notes", "table", "count"]) + str(i) for i in range(rng.randint(1, 5)))
        question = " ".join(rng.choice(["select", "where", "notes", "from"]) for _ in range(rng.randint(1, 9)))
        form = LogicalForm(0, number % 3, ((0, 0, rng.choice("abcd")),))
        result.append(Example(f"1-{seed}-{number}", question + " ?", header, ("text",) * len(header), form))
    return result
