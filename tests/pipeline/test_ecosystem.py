"""What others' programs make of our model and adapter: the tokens that sqlora itself generates, and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlora.mlx import mx

import mlx_lm
import numpy as np
import openai
import pytest
import torch
from contract import ROOT
from ecosystem import (
    MAX_TOKENS,
    Trained,
    llama_cpp_server,
    make_trained,
    mlx_lm_server,
    offline,
    our_logits,
    ours,
    reason,
    shown,
)
from project import Project
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sqlora.convert.tokenizer import ODD_STRINGS
from sqlora.export.fuse import fuse_adapter
from sqlora.export.gguf import write_gguf
from sqlora.model import load_base
from sqlora.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def trained(original: Project, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A trained model that writes readable answers, of which some end before the limit."""
    return make_trained(original.folder / "artifacts", tmp_path_factory.mktemp("trained"))


def test_mlx_lm_generates_the_same_tokens(trained: Trained) -> None:
    model, tokenizer = mlx_lm.load(str(trained.model), adapter_path=str(trained.adapter))
    for prompt, completion in zip(trained.prompts, trained.completions, strict=True):
        steps = list(mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=MAX_TOKENS))
        assert steps[-1].finish_reason == reason(completion)
        tokens = [step.token for step in steps]
        if completion.stopped:
            assert tokens.pop() == 2
        assert len(tokens) == completion.tokens
        assert Tokenizer(trained.model).decode(tokens) == completion.completion
        assert "".join(step.text for step in steps) == shown(completion)


@pytest.fixture(scope="module")
def server(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running mlx_lm.server with model and adapter."""
    with mlx_lm_server(trained, tmp_path_factory.mktemp("server")) as address:
        yield address


def test_the_openai_client_gets_the_same_text_from_mlx_lm_server(trained: Trained, server: str) -> None:
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none")
    for prompt, completion in zip(trained.prompts, trained.completions, strict=True):
        answer = client.completions.create(model="default_model", prompt=prompt, temperature=0, max_tokens=MAX_TOKENS)
        assert answer.choices[0].text == shown(completion)
        assert answer.choices[0].finish_reason == reason(completion)
        assert answer.usage
        assert answer.usage.prompt_tokens == len(Tokenizer(trained.model).encode_prompt(prompt))
        assert answer.usage.completion_tokens == completion.tokens + completion.stopped


@pytest.fixture(scope="module")
def fused(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our own fused model."""
    folder = tmp_path_factory.mktemp("fused")
    fuse_adapter(trained.model, trained.adapter, folder)
    return folder


def test_mlx_lm_fuse_gives_the_logits_of_base_and_adapter(trained: Trained, fused: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mlx_lm", "fuse", "--model", str(trained.model)]
    command += ["--adapter-path", str(trained.adapter), "--save-path", str(tmp_path / "fused"), "--dequantize"]
    done = subprocess.run(command, env=offline(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = our_logits(trained)
    tokens = mx.array([Tokenizer(trained.model).encode_prompt(trained.prompts[0])])
    for folder in (tmp_path / "fused", fused):
        model, _ = mlx_lm.load(str(folder))
        assert np.abs(np.array(model(tokens)[0]) - expected).max() < 1e-4, folder
    assert np.abs(np.array(load_base(trained.model)[0](tokens)[0]) - expected).max() > 1e-2
    theirs, mine = (load_file(folder / "model.safetensors") for folder in (tmp_path / "fused", fused))
    assert theirs.keys() == mine.keys()
    assert all(torch.allclose(theirs[name], mine[name], rtol=0, atol=1e-6) for name in mine)


def test_transformers_loads_the_fused_model(trained: Trained, fused: Path) -> None:
    prompt = trained.prompts[0]
    tokenizer = AutoTokenizer.from_pretrained(fused)
    ours = Tokenizer(trained.model)
    for text in [*ODD_STRINGS, prompt]:
        assert tokenizer(text)["input_ids"] == ours.encode_prompt(text)
    model = AutoModelForCausalLM.from_pretrained(fused)
    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        logits = model(inputs["input_ids"]).logits[0].numpy()
    assert np.abs(logits - our_logits(trained)).max() < 1e-4
    for prompt, completion in zip(trained.prompts, trained.completions, strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=MAX_TOKENS)[0][inputs["input_ids"].shape[1] :]
        assert tokenizer.decode(output, skip_special_tokens=True) == completion.completion
        assert (int(output[-1]) == 2) == completion.stopped


@pytest.fixture(scope="module")
def llama_cpp(fused: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of llama.cpp's own server, with the fused model as GGUF."""
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(fused, folder / "tiny.gguf", name="tiny")
    with llama_cpp_server(folder / "tiny.gguf") as address:
        yield address


def test_llama_cpp_generates_the_same_text_from_gguf(trained: Trained, llama_cpp: str) -> None:
    client = openai.OpenAI(base_url=f"{llama_cpp}/v1", api_key="none")
    for prompt, completion in zip(trained.prompts, trained.completions, strict=True):
        answer = client.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=MAX_TOKENS)
        assert answer.choices[0].text.lstrip(" ") == shown(completion)
        assert answer.choices[0].finish_reason == reason(completion)


def test_llama_cpp_computes_the_same_probabilities(trained: Trained, llama_cpp: str) -> None:
    body = {"prompt": trained.prompts[0], "n_predict": 1, "temperature": 0, "n_probs": 100}
    answer = openai.OpenAI(base_url=llama_cpp, api_key="none").post("/completion", body=body, cast_to=dict[str, Any])
    logits = torch.from_numpy(our_logits(trained)[-1])
    expected = torch.log_softmax(logits, -1)
    entries = answer["completion_probabilities"][0]["top_logprobs"]
    assert len(entries) == 100
    for entry in entries:
        assert entry["logprob"] == pytest.approx(float(expected[entry["id"]]), abs=1e-4)


def test_llama_cpp_tokenizes_as_sentencepiece_does(trained: Trained, llama_cpp: str) -> None:
    client = openai.OpenAI(base_url=llama_cpp, api_key="none")
    ours = Tokenizer(trained.model)
    for text in [*ODD_STRINGS, *trained.prompts]:
        body = {"content": text, "add_special": True, "parse_special": False}
        tokens = client.post("/tokenize", body=body, cast_to=dict[str, list[int]])["tokens"]
        assert tokens == ours.encode_prompt(text), text


def test_the_export_is_a_pipeline_of_its_own(original: Project, tmp_path: Path) -> None:
    shutil.copytree(original.folder, tmp_path / "copy", symlinks=True)
    project = Project(tmp_path / "copy")
    shutil.copytree(
        ROOT / "export", project.folder / "export", ignore=shutil.ignore_patterns("fused", "*.gguf", "*.lock")
    )
    assert project.repro() == set()

    def export() -> list[str]:
        done = project.run("dvc", "repro", "export/dvc.yaml")
        assert done.returncode == 0, done.stderr
        return re.findall(r"^Running stage '([\w/.:]+)'", done.stdout, re.MULTILINE)

    assert export() == ["export/dvc.yaml:fuse", "export/dvc.yaml:gguf"]
    assert (project.folder / "export/sqlora.gguf").read_bytes()[:4] == b"GGUF"
    assert (project.folder / "export/fused/tokenizer.model").is_file()
    assert export() == []
    status = project.run("git", "status", "--short", "--untracked-files=all", "export")
    assert not re.search(r"fused|sqlora\.gguf", status.stdout)
    assert "?? export/dvc.lock" in status.stdout
    # Neither file is in DVC's cache, so that push and pull leave them alone.
    assert "cache: false" in (project.folder / "export/dvc.yaml").read_text()
    sizes = {path.stat().st_size for path in (project.folder / ".dvc/cache").rglob("*") if path.is_file()}
    assert (project.folder / "export/sqlora.gguf").stat().st_size not in sizes


GUIDE = (ROOT / "docs/guides/use-elsewhere.md").read_text(encoding="utf-8")
BLOCKS: list[tuple[str, str]] = re.findall(r"```(bash|python)\n(.*?)```", GUIDE, re.DOTALL)


def test_the_guides_commands_give_our_answer(trained: Trained, fused: Path, server: str, tmp_path: Path) -> None:
    for name, target in (
        ("artifacts/model", trained.model),
        ("artifacts/adapter", trained.adapter),
        ("export/fused", fused),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(target)
    prompt = next(block for block in re.findall(r"```\n(.*?)\n```", GUIDE, re.DOTALL) if block.startswith("table: "))
    [expected] = ours(trained.model, trained.adapter, [prompt], max_tokens=100)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = []
    for language, block in BLOCKS:
        first = block.split()[0]
        # The server runs already, dvc has a test of its own, and not every machine has curl.
        if first in ("mlx_lm.server", "dvc") or (first == "curl" and not shutil.which(first)):
            continue
        program = {"python": sys.executable, "bash": "bash"}[language]
        command = [program, "-c", block.replace("http://127.0.0.1:8080", server)]
        environment = offline(tmp_path) | {"PATH": path}
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        output = json.loads(done.stdout)["choices"][0]["text"] if first == "curl" else done.stdout.strip()
        if first != "mlx_lm.fuse":
            assert output == shown(expected).rstrip(), block
        ran.append(first)
    assert set(ran) >= {"mlx_lm.generate", "mlx_lm.fuse", "import", "from"}
    assert (tmp_path / "export/mlx-fused/config.json").is_file()


def test_the_guide_names_what_exists() -> None:
    stages = {"export/dvc.yaml", "export/dvc.yaml:fuse", "export/dvc.yaml:gguf"}
    assert set(re.findall(r"dvc repro (\S+)", "".join(block for _, block in BLOCKS))) <= stages
    modelfile = (ROOT / "export/Modelfile").read_text()
    assert "FROM ./sqlora.gguf\n" in modelfile
    assert 'TEMPLATE """{{ .Prompt }}"""' in modelfile
    command = next(block for _, block in BLOCKS if block.startswith("mlx_lm.server"))
    help_text = subprocess.run(
        [sys.executable, "-m", "mlx_lm", "server", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for option in re.findall(r"--[\w-]+", command):
        assert f"{option} " in help_text, option
