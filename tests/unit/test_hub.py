"""hf:// sources, through the hub's real client, against a small server that speaks its protocol."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_hub import COMMIT, FakeHub

ROOT = Path(__file__).parents[2]
# HF_ENDPOINT is read when the client is imported, so that it runs in a process of its own; one for several addresses.
CHILD = """
import shutil, sys
from pathlib import Path
from sqlora.errors import SqloraError
from sqlora.fetch.model import fetch_model
for number, source in enumerate(sys.argv[2:]):
    folder = Path(f"out{number}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        fetch_model(source, checksum=sys.argv[1] or None, demo=Path, folder=folder)
        print("fetched")
    except SqloraError as error:
        print(error)
"""
MODEL = {
    "config.json": b"{}",
    "tokenizer.json": b'{"tokens": []}',
    "model-00001-of-00002.safetensors": bytes(range(256)) * 4000,
    "model-00002-of-00002.safetensors": b"second" * 1000,
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {f"w{number}": f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}}
    ).encode(),
}
REST = {"README.md": b"a model", "pytorch_model.bin": b"pickle", "onnx/config.json": b"other", "params.json": b"{}"}
FIRST = "model-00001-of-00002.safetensors"


@dataclass
class Client:
    hub: FakeHub

    def fetch(self, *sources: str, checksum: str = "", **environment: str) -> list[str]:
        """What comes of each source: `fetched` into out0, out1, … or an error."""
        settings = {"PYTHONPATH": str(ROOT / "src"), "NO_PROXY": "*", "no_proxy": "*", "HF_ENDPOINT": self.hub.url}
        settings |= {
            "HF_HOME": str(Path("home").absolute()),
            "HF_HUB_ETAG_TIMEOUT": "2",
            "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        }
        command = [sys.executable, "-c", CHILD, checksum, *sources]
        done = subprocess.run(
            command, env=os.environ | settings | environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout.splitlines()


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.chdir(tmp_path)
    hub = FakeHub()
    hub.repositories["own/model"] = MODEL | REST
    yield Client(hub)
    hub.close()


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_a_model_of_the_hub(client: Client) -> None:
    client.hub.repositories["own/mistral"] = {
        "params.json": b"{}",
        "tokenizer.model": b"m",
        "consolidated.00.pth": b"w",
        "README.md": b"",
    }
    client.hub.repositories["own/single"] = MODEL | {"model.safetensors": b"all"}
    sources = ["hf://own/model", f"hf://own/model@{COMMIT}", "hf://own/mistral@main", "hf://own/single"]
    assert client.fetch(*sources) == ["fetched"] * 4
    assert contents("out0") == contents("out1") == MODEL
    assert set(contents("out2")) == {"params.json", "tokenizer.model", "consolidated.00.pth"}
    assert set(contents("out3")) == {"config.json", "tokenizer.json", "model.safetensors"}
    asked = {
        path.rpartition("/")[2] for method, path, _ in client.hub.requests if "/resolve/" in path and method == "GET"
    }
    assert asked == {*MODEL, *contents("out2"), "model.safetensors"}  # and nothing of the rest
    # Outside of a DVC repository the download stays, as the same file.
    for path in Path("out0").iterdir():
        assert path.stat().st_nlink == 2
    assert client.fetch("hf://own/model") == ["fetched"]


def test_the_next_run_goes_on_with_the_files_that_are_here(client: Client) -> None:
    assert client.fetch("hf://own/model") == ["fetched"]
    (place,) = Path(".sqlora/downloads/hf").iterdir()
    # As a killed run leaves it: the client never goes on with such a piece, and gives each another name.
    (place / FIRST).unlink()
    piece = place / ".cache/huggingface/download/x.1234.incomplete"
    piece.write_bytes(b"piece")
    (place / "model-00001-of-00003.safetensors").write_bytes(b"of another commit")
    client.hub.requests.clear()
    assert client.fetch("hf://own/model") == ["fetched"]
    assert contents("out0") == MODEL
    assert not piece.exists()
    got = [
        path.rpartition("/")[2] for method, path, _ in client.hub.requests if method == "GET" and "/resolve/" in path
    ]
    assert got == [FIRST]


def test_in_a_dvc_repository_there_is_one_copy(client: Client) -> None:
    dvc = Path(sys.executable).with_name("dvc")
    subprocess.run([dvc, "init", "-q", "--no-scm"], env=os.environ | {"DVC_NO_ANALYTICS": "1"}, check=True)
    assert client.fetch("hf://own/model") == ["fetched"]
    weights = Path("out0") / FIRST
    objects = [path for path in Path(".dvc/cache").rglob("*") if path.is_file() and path.samefile(weights)]
    assert len(objects) == 1
    assert list(Path(".sqlora/downloads/hf").iterdir()) == []
    client.hub.requests.clear()
    assert client.fetch("hf://own/model") == ["fetched"]
    assert contents("out0") == MODEL
    assert client.hub.requests == []


def test_wrong_bytes(client: Client) -> None:
    client.hub.wrong.add(FIRST)
    (error,) = client.fetch("hf://own/model")
    assert error.startswith(f"hf://own/model, {FIRST}: found sha256:")
    assert contents("out0") == {}
    client.hub.wrong.clear()
    assert client.fetch("hf://own/model") == ["fetched"]
    assert contents("out0") == MODEL


def test_what_the_hub_refuses(client: Client) -> None:
    client.hub.repositories |= {"own/gated": MODEL, "own/data": {"README.md": b""}, "own/half": {"config.json": b"{}"}}
    client.hub.gated.add("own/gated")
    gone, gated, revision, data, half, address = client.fetch(
        *("hf://own/gone", "hf://own/gated", "hf://own/model@v9", "hf://own/data", "hf://own/half", "hf://model")
    )
    assert gone.startswith("hf://own/gone: found no such repository, or a private one; expected a model's files")
    assert gated.startswith("hf://own/gated: found a gated repository;")
    assert "Accept its terms" in gated
    assert revision.startswith("hf://own/model@v9: found no such revision;")
    assert "found no file of a model among README.md" in data
    assert "no model.safetensors or model.safetensors.index.json, no tokenizer.json or tokenizer.model" in half
    assert "expected hf://owner/name or hf://owner/name@revision" in address


def test_no_way_to_the_hub(client: Client) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        (error,) = client.fetch("hf://own/model", HF_ENDPOINT=f"http://127.0.0.1:{closed.getsockname()[1]}")
    assert error.startswith("hf://own/model: found ")
    assert "refused" in error
    (error,) = client.fetch("hf://own/model", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in error
    (error,) = client.fetch("hf://own/model", checksum="md5:" + "0" * 32)
    assert error.startswith("params.yaml, model.checksum: found a checksum together with an hf:// source")
    assert "commit" in error
