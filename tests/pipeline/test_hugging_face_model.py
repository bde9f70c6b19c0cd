"""A Hugging Face style base model through every stage that touches a model: converted, trained, generated, scored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from contract import ROOT
from ruamel.yaml import YAML
from tiny_llama import write_model

from sqlora.model import load_base
from sqlora.text import read_examples
from sqlora.tokenizer import Tokenizer

SMALL: dict[str, dict[str, Any]] = {
    "convert": {"dtype": "float32", "quantize": 4, "group_size": 32},
    "split": {"train_size": 12, "valid_size": 4, "test_size": 5},
    "lora": {"layers": 2, "rank": 2},
    "train": {"iterations": 2, "batch_size": 2, "learning_rate": 0.1},
    "generate": {"max_tokens": 4},
}


class Workplace:
    """A folder in which stages run one by one, with a small params.yaml."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.params = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        for section, changes in SMALL.items():
            self.params[section] |= changes

    def run(self, stage: str, **paths: str) -> subprocess.CompletedProcess[str]:
        with open(self.folder / "params.yaml", "w", encoding="utf-8") as file:
            YAML().dump(self.params, file)
        command = [sys.executable, str(ROOT / "stages" / f"{stage}.py")]
        for name, path in paths.items():
            command += ["--" + name.replace("_", "-"), path]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)

    def succeed(self, stage: str, **paths: str) -> str:
        done = self.run(stage, **paths)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """With a converted, quantized model, and a dataset whose lengths were counted by that model's tokenizer."""
    place = Workplace(tmp_path_factory.mktemp("llama"))
    write_model(place.folder / "source", tie_word_embeddings=True, max_position_embeddings=4096)
    place.succeed("convert", source_model="source", out="model")
    place.succeed("fetch_data", out="wikisql")
    place.succeed("split", wikisql="wikisql", model="model", out="dataset", summary="dataset.json")
    return place


def test_lengths_are_in_the_models_own_tokens(workplace: Workplace) -> None:
    tokenizer = Tokenizer(workplace.folder / "model")
    lengths = [
        len(tokenizer.encode_example(example.prompt, example.completion).tokens)
        for example in read_examples(workplace.folder / "dataset/train.jsonl")
    ]
    assert json.loads((workplace.folder / "dataset.json").read_text())["train"]["tokens"]["max"] == max(lengths)


def test_it_is_trained_generated_and_scored(workplace: Workplace) -> None:
    examples, valid = "dataset/train.jsonl", "dataset/valid.jsonl"
    workplace.succeed(
        "train", model="model", examples=examples, valid=valid, out="adapter", metrics="training.json", loss="loss.csv"
    )
    _, config = load_base(workplace.folder / "model")
    assert config["quantization"]["bits"] == 4
    training = json.loads((workplace.folder / "training.json").read_text())
    # Not their ratio: a process's peak begins with what the one that started it held, which may be all tests' memory.
    assert 0.2 < training["predicted_peak_memory_gb"] < 0.8
    assert training["peak_memory_gb"] > 0.2
    # 512 * 64 tied; in each of 3 layers q, o 64 * 64, k, v 64 * 32, three of 64 * 96, two norms; and the last norm.
    assert training["total_parameters"] == 512 * 64 + 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96 + 2 * 64) + 64
    inputs = {"model": "model", "examples": "dataset/test.jsonl", "tables": "dataset/test.db"}
    workplace.succeed("generate", **inputs, adapter="adapter", out="answers.jsonl")
    assert len((workplace.folder / "answers.jsonl").read_text().splitlines()) == 5
    outputs = {"out": "scores", "scores": "score.json", "details": "details.json"}
    outputs |= {"breakdown": "breakdown.csv", "errors": "errors.csv"}
    workplace.succeed("score", dataset="dataset", base="answers.jsonl", adapter="answers.jsonl", **outputs)
    assert json.loads((workplace.folder / "score.json").read_text())["examples"] == 5
    free = workplace.params["generate"]
    workplace.params["generate"] = free | {"max_tokens": 100, "constrain": "schema+question", "execution_guided": 4}
    workplace.succeed("generate", **inputs, out="held.jsonl")
    workplace.params["generate"] = free
    workplace.succeed("score", dataset="dataset", base="held.jsonl", adapter="answers.jsonl", **outputs)
    base = json.loads((workplace.folder / "score.json").read_text())["base"]
    assert base["valid_sql"] == 1 >= base["stopped_at_eos"]


def test_a_prompt_and_answer_beyond_the_context_are_refused(workplace: Workplace) -> None:
    folder = workplace.folder
    tokenizer = Tokenizer(folder / "model")
    lengths = [len(tokenizer.encode_prompt(example.prompt)) for example in read_examples(folder / "dataset/test.jsonl")]
    config = json.loads((folder / "model/config.json").read_text())
    first = next(number for number, length in enumerate(lengths, 1) if length == max(lengths))
    (folder / "model/config.json").write_text(json.dumps(config | {"max_position_embeddings": max(lengths) + 3}))
    inputs = {"model": "model", "examples": "dataset/test.jsonl", "tables": "dataset/test.db"}
    done = workplace.run("generate", **inputs, out="short.jsonl")
    assert done.returncode == 1
    assert not (folder / "short.jsonl").exists()
    message = " ".join(done.stderr.split())
    assert f"test.jsonl:{first}: found a prompt of {max(lengths)} tokens, and generate.max_tokens of 4" in message
    assert f"expected at most {max(lengths) + 3} together" in message
    assert "Traceback" not in done.stderr
    (folder / "model/config.json").write_text(json.dumps(config))
