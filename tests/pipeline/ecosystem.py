"""Runs other programs on what the pipeline made, and says what sqlora itself makes of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlora.mlx import mx

import numpy as np
from safetensors.torch import load_file, save_file

from sqlora.generate.run import generate
from sqlora.generate.saved import Completion
from sqlora.model import add_adapter, load_base
from sqlora.params.generate import GenerateParams
from sqlora.text import read_examples
from sqlora.tokenizer import Tokenizer

MAX_TOKENS = 12
BYTES = range(3, 259)


@dataclass(frozen=True)
class Trained:
    """A model that the pipeline converted, the adapter that it trained, and what sqlora generates with both."""

    model: Path
    adapter: Path
    prompts: list[str]
    completions: list[Completion]


def make_trained(artifacts: Path, folder: Path) -> Trained:
    """Copies of a tiny run's model and adapter, changed to write readable answers of which some stop by themselves."""
    adapter = folder / "adapter"
    shutil.copytree(artifacts / "adapter", adapter)
    weaken(adapter)
    prompts = [example.prompt for example in read_examples(artifacts / "dataset/train.jsonl")]
    for factor in (1.5, 2, 3, 4, 6, 9):
        model = folder / f"model-{factor}"
        shutil.copytree(artifacts / "model", model)
        change_head(model, factor)
        completions, alone = ours(model, adapter, prompts), ours(model, None, prompts)
        if len({completion.stopped for completion in completions}) == 2:
            assert completions != alone, "the adapter must show"
            return Trained(model, adapter, prompts, completions)
    raise AssertionError("no head gives answers that stop and answers that do not")


def weaken(adapter: Path) -> None:
    """Undo the tiny project's far too high learning rate, under which rounding alone changes logits by 1e-3."""
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    config["lora_parameters"]["scale"] /= 50
    path.unlink()
    path.write_text(json.dumps(config))


def change_head(model: Path, factor: float) -> None:
    """Make EOS likelier, and single bytes, of which a random model would write rubbish, unlikely."""
    for path in model.glob("*.safetensors"):
        weights = load_file(path)
        if "lm_head.weight" in weights:
            weights["lm_head.weight"][2] *= factor
            weights["lm_head.weight"][[0, 1, *BYTES]] = 0.0
        path.unlink()
        save_file(weights, path, metadata={"format": "mlx"})


def ours(model: Path, adapter: Path | None, prompts: list[str], *, max_tokens: int = MAX_TOKENS) -> list[Completion]:
    """What sqlora generates."""
    network, _ = load_base(model)
    if adapter:
        add_adapter(network, adapter)
    params = GenerateParams(4, max_tokens, "none", None, workers=1, hostfile=None, backend="auto")
    return generate(network, Tokenizer(model), [Prompted(prompt) for prompt in prompts], params)


@dataclass(frozen=True)
class Prompted:
    """A prompt, and a table that does not matter where nothing is constrained."""

    prompt: str
    question: str = ""
    id: str = ""
    header: tuple[str, ...] = ()
    types: tuple[str, ...] = ()


def our_logits(trained: Trained) -> np.ndarray:
    network, _ = load_base(trained.model)
    add_adapter(network, trained.adapter)
    return np.array(network(mx.array([Tokenizer(trained.model).encode_prompt(trained.prompts[0])]))[0])


@contextlib.contextmanager
def mlx_lm_server(trained: Trained, folder: Path) -> Iterator[str]:
    """Run mlx_lm.server with model and adapter, its log in `folder`; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlx_lm", "server", "--port", str(port)]
    command += ["--model", str(trained.model), "--adapter-path", str(trained.adapter)]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, env=offline(folder), cwd=folder, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        while not answers(f"{address}/health"):
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    """Whether a server is there already."""
    try:
        with urllib.request.urlopen(url) as response:
            return bool(response.status == 200)
    except urllib.error.URLError:
        return False


@contextlib.contextmanager
def llama_cpp_server(path: Path) -> Iterator[str]:
    """Run llama.cpp's server on a GGUF file; gives its address."""
    command = [sys.executable, str(Path(__file__).with_name("llama_server.py")), str(path)]
    with open(path.with_suffix(".log"), "w") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdin
    assert process.stdout
    try:
        address = next((line.split()[1] for line in process.stdout if line.startswith("address: ")), None)
        assert address, path.with_suffix(".log").read_text()
        yield address
    finally:
        process.stdin.close()
        process.wait()


def offline(tmp_path: Path) -> dict[str, str]:
    """An environment in which whatever asks the network, or a cache of earlier downloads, fails."""
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    hub = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HOME": str(tmp_path / "huggingface")}
    return os.environ | nowhere | hub | {"NO_PROXY": "127.0.0.1,localhost"}


def shown(completion: Completion) -> str:
    """Without the blanks in front, of which mlx-lm drops all, sentencepiece one and llama.cpp none."""
    return completion.completion.lstrip(" ")


def reason(completion: Completion) -> str:
    return "stop" if completion.stopped else "length"
