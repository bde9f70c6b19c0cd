"""Runs the fetch and convert stages as DVC does, on bad input, and looks at what a user would see."""

from __future__ import annotations

import functools
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from tiny_model import random_weights, write_checkpoint, write_tar

ROOT = Path(__file__).parents[2]


class Kitchen:
    """A folder to run stages in, with a params.yaml of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.params = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))

    def run(self, stage: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        with open(self.folder / "params.yaml", "w", encoding="utf-8") as file:
            YAML().dump(self.params, file)
        environment = os.environ | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "PYTHONPATH": str(ROOT / "src")}
        command = [sys.executable, str(ROOT / "stages" / f"{stage}.py"), *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    def fetch_model(self, source: object, checksum: str | None = None) -> subprocess.CompletedProcess[str]:
        self.params["model"] = {"source": str(source), "checksum": checksum}
        return self.run("fetch_model", "--demo", "base.tar", "--out", "artifacts/source-model")

    def convert(self, dtype: str = "float32") -> subprocess.CompletedProcess[str]:
        self.params["convert"]["dtype"] = dtype
        return self.run("convert", "--source-model", "source", "--out", "artifacts/model")

    def fetch_data(self, source: object) -> subprocess.CompletedProcess[str]:
        self.params["data"] |= {"source": str(source), "checksum": None}
        return self.run("fetch_data", "--out", "artifacts/wikisql")


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    return Kitchen(tmp_path)


def assert_fails(kitchen: Kitchen, run: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Status 1, one paragraph with everything a user needs, and nothing half-written."""
    assert run.returncode == 1, run.stderr
    assert "Traceback" not in run.stderr + run.stdout
    # Progress bars come before it; the message is the last thing on the screen.
    message = run.stderr[run.stderr.rindex("error: ") :]
    assert "\n\n" not in message.strip()
    flat = " ".join(message.split())
    assert ": found " in flat
    assert "; expected " in flat
    assert "may be a bug" not in flat
    for part in parts:
        assert part in flat, flat
    left = [path for name in ("artifacts", ".sqlora") for path in (kitchen.folder / name).rglob("*") if path.is_file()]
    assert [path for path in left if path.name != ".lock"] == []  # an empty file that nobody holds
    assert not list(kitchen.folder.rglob(".partial-*"))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- fetch_model ----------------------------------------------------------------------------------------------------


def test_fetch_model_and_convert(kitchen: Kitchen) -> None:
    write_checkpoint(kitchen.folder / "made")
    write_tar(kitchen.folder / "base.tar", kitchen.folder / "made")
    for source in ("demo", "base.tar", "made", kitchen.folder / "made"):
        run = kitchen.fetch_model(source)
        assert run.returncode == 0, run.stderr
        assert files(kitchen.folder / "artifacts/source-model") == [
            "consolidated.00.pth",
            "params.json",
            "tokenizer.model",
        ]
    (kitchen.folder / "artifacts/source-model").rename(kitchen.folder / "source")
    run = kitchen.convert("bfloat16")
    assert run.returncode == 0, run.stderr
    assert "convert: 100%" in run.stderr
    assert "model-00001-of-00001.safetensors" in files(kitchen.folder / "artifacts/model")


def test_fetch_model_from_the_second_of_two_sources_in_hugging_faces_format(kitchen: Kitchen) -> None:
    names = ["config.json", "model.safetensors", "tokenizer.json"]
    (kitchen.folder / "made").mkdir()
    for name in [*names, "README.md"]:
        (kitchen.folder / "made" / name).write_text(name)
    kitchen.params["model"] = {"source": ["none.tar", "made"], "checksum": None}
    run = kitchen.run("fetch_model", "--demo", "base.tar", "--out", "artifacts/source-model")
    assert run.returncode == 0, run.stderr
    assert "none.tar: no such file or folder; trying the next source" in run.stderr
    assert files(kitchen.folder / "artifacts/source-model") == names


def test_source_that_is_not_there(kitchen: Kitchen) -> None:
    run = kitchen.fetch_model("models/mistral.tar")
    assert_fails(
        kitchen, run, str(kitchen.folder / "models/mistral.tar"), "no such file or folder", "Correct model.source"
    )


def test_tar_without_one_of_the_files(kitchen: Kitchen) -> None:
    write_checkpoint(kitchen.folder / "made")
    write_tar(kitchen.folder / "x.tar", kitchen.folder / "made", names=("consolidated.00.pth", "tokenizer.model"))
    run = kitchen.fetch_model("x.tar")
    assert_fails(kitchen, run, str(kitchen.folder / "x.tar"), "no params.json among tiny-v0.1/consolidated.00.pth")


def test_truncated_tar(kitchen: Kitchen) -> None:
    write_checkpoint(kitchen.folder / "made")
    path = write_tar(kitchen.folder / "x.gz", kitchen.folder / "made")
    path.write_bytes(path.read_bytes()[:-100])
    assert_fails(kitchen, kitchen.fetch_model("x.gz"), str(path), "truncated or damaged")


def test_failed_fetch_keeps_what_was_there(kitchen: Kitchen) -> None:
    write_checkpoint(kitchen.folder / "made")
    assert kitchen.fetch_model("made").returncode == 0
    (kitchen.folder / "made/params.json").unlink()
    assert kitchen.fetch_model("made").returncode == 1
    assert len(files(kitchen.folder / "artifacts/source-model")) == 3
    assert files(kitchen.folder / "artifacts") == ["source-model"]


def test_wrong_checksum(kitchen: Kitchen) -> None:
    write_checkpoint(kitchen.folder / "made")
    write_tar(kitchen.folder / "x.tar", kitchen.folder / "made")
    wrong = "md5:" + "0" * 32
    assert_fails(kitchen, kitchen.fetch_model("x.tar", wrong), "x.tar: found md5:", f"expected {wrong}")
    assert_fails(kitchen, kitchen.fetch_model("made", wrong), "a folder, together with a model.checksum")
    assert_fails(kitchen, kitchen.fetch_model("x.tar", "md5:x"), "params.yaml, model.checksum", "32 hexadecimal digits")


class Pages(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/page.html").write_text("<html>Please log in</html>")
    (tmp_path / "site/text.tar").write_text("no tar")
    handler = functools.partial(Pages, directory=str(tmp_path / "site"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_fetch_model_from_a_url(kitchen: Kitchen, site: str) -> None:
    write_checkpoint(kitchen.folder / "made")
    write_tar(kitchen.folder / "site/x.tar", kitchen.folder / "made")
    run = kitchen.fetch_model(f"{site}/x.tar")
    assert run.returncode == 0, run.stderr
    fetched = kitchen.folder / "artifacts/source-model/params.json"
    assert fetched.read_bytes() == (kitchen.folder / "made/params.json").read_bytes()
    (kitchen.folder / "site/x.tar").unlink()
    assert kitchen.fetch_model(f"{site}/x.tar").returncode == 0  # from .sqlora/downloads


@pytest.mark.parametrize(
    ("name", "found"),
    [("none.tar", "HTTP status 404"), ("page.html", "a web page"), ("text.tar", "something else than a tar")],
)
def test_url_that_gives_no_tar(kitchen: Kitchen, site: str, name: str, found: str) -> None:
    run = kitchen.fetch_model(f"{site}/{name}")
    assert_fails(kitchen, run, f"{site}/{name}: found {found}", "set model.source to the path")


# --- convert --------------------------------------------------------------------------------------------------------


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch canary",)


def test_params_json_that_does_not_fit_the_tensors(kitchen: Kitchen) -> None:
    write_checkpoint(kitchen.folder / "source")
    path = kitchen.folder / "source/params.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"n_kv_heads": 4, "n_layers": 2}))
    run = kitchen.convert()
    assert_fails(
        kitchen,
        run,
        "source/consolidated.00.pth: found 13 problems",
        "layers.0.attention.wk.weight has shape (32, 48) where params.json implies (64, 48)",
        "layers.2.attention.wq.weight is not a tensor of this architecture",
    )
    path.write_text(json.dumps({"dim": 48}))
    assert_fails(kitchen, kitchen.convert(), "source/params.json: found 7 problems", "n_heads is missing")


def test_checkpoint_that_wants_to_run_code(kitchen: Kitchen) -> None:
    write_checkpoint(kitchen.folder / "source")
    torch.save({"norm.weight": RunsCode()}, kitchen.folder / "source/consolidated.00.pth")
    assert_fails(kitchen, kitchen.convert(), "consolidated.00.pth", "nothing was run")
    assert not (kitchen.folder / "canary").exists()


def test_truncated_checkpoint(kitchen: Kitchen) -> None:
    write_checkpoint(kitchen.folder / "source")
    path = kitchen.folder / "source/consolidated.00.pth"
    path.write_bytes(path.read_bytes()[:-1000])
    run = kitchen.convert()
    assert_fails(kitchen, run, "source/consolidated.00.pth: found a damaged or foreign file", "fetch it again")
    assert "weights_only" not in run.stderr


def test_value_outside_of_float16(kitchen: Kitchen) -> None:
    write_checkpoint(kitchen.folder / "source")
    weights = random_weights(json.loads((kitchen.folder / "source/params.json").read_text()))
    weights["output.weight"][0, 0] = 1e6
    torch.save(weights, kitchen.folder / "source/consolidated.00.pth")
    run = kitchen.convert("float16")
    assert_fails(kitchen, run, "tensor output.weight: found values up to 1e+06", "Set convert.dtype to bfloat16")


def test_tokenizer_of_another_model(kitchen: Kitchen) -> None:
    write_checkpoint(kitchen.folder / "other", vocab_size=400)
    write_checkpoint(kitchen.folder / "source")
    (kitchen.folder / "other/tokenizer.model").replace(kitchen.folder / "source/tokenizer.model")
    assert_fails(kitchen, kitchen.convert(), "source/tokenizer.model: found a vocabulary of 400 pieces; expected 512")


def test_missing_source_folder(kitchen: Kitchen) -> None:
    assert_fails(kitchen, kitchen.convert(), "source/params.json: found no such file")


# --- fetch_data -----------------------------------------------------------------------------------------------------


def write_data(folder: Path) -> None:
    """WikiSQL's layout with one table and one question in each part."""
    folder.mkdir(parents=True)
    for part in ("train", "dev", "test"):
        table = {"id": f"1-{part}", "header": ["Player", "No."], "types": ["text", "real"], "rows": [["A", 1.0]]}
        sql = {"sel": 0, "agg": 0, "conds": [[1, 0, 1]]}
        question = {"phase": 1, "table_id": f"1-{part}", "question": "Who?", "sql": sql}
        (folder / f"{part}.tables.jsonl").write_text(json.dumps(table) + "\n")
        (folder / f"{part}.jsonl").write_text(json.dumps(question) + "\n")


def test_fetch_data_from_a_folder(kitchen: Kitchen) -> None:
    write_data(kitchen.folder / "wiki/data")
    run = kitchen.fetch_data("wiki")
    assert run.returncode == 0, run.stderr
    assert len(files(kitchen.folder / "artifacts/wikisql")) == 6


def test_malformed_line_is_named_in_the_source(kitchen: Kitchen) -> None:
    write_data(kitchen.folder / "wiki")
    with open(kitchen.folder / "wiki/dev.jsonl", "a") as file:
        file.write('{"table_id": \n')
    assert_fails(kitchen, kitchen.fetch_data("wiki"), "wiki/dev.jsonl:2: found", "set data.source in params.yaml")


def test_data_without_one_of_the_files(kitchen: Kitchen) -> None:
    write_data(kitchen.folder / "wiki")
    (kitchen.folder / "wiki/test.tables.jsonl").unlink()
    assert_fails(kitchen, kitchen.fetch_data("wiki"), "no test.tables.jsonl among dev.jsonl")
