"""A model is downloaded once: what DVC's cache has is neither downloaded nor stored again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tars import member, write_members
from web_server import WebServer

from sqlora.errors import SqloraError
from sqlora.fetch.cache import DvcCache, dvc_cache
from sqlora.fetch.model import fetch_model

MODEL = {"consolidated.00.pth": bytes(range(256)) * 2000, "params.json": b"{}", "tokenizer.model": b"pieces"}
OUT = Path("out")


@pytest.fixture(autouse=True)
def here(fetching_folder: Path) -> Path:
    return fetching_folder


@pytest.fixture
def repository(here: Path) -> DvcCache:
    """A DVC repository in this folder."""
    dvc = Path(sys.executable).with_name("dvc")
    subprocess.run([dvc, "init", "-q", "--no-scm"], env=os.environ | {"DVC_NO_ANALYTICS": "1"}, check=True)
    cache = dvc_cache()
    assert cache is not None
    return cache


@pytest.fixture
def body(here: Path) -> bytes:
    return write_members(here / "x.tar", *(member(name, content) for name, content in MODEL.items())).read_bytes()


def fetch(*sources: str, checksum: str | None = None) -> dict[str, bytes]:
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    fetch_model(sources, checksum=checksum, demo=Path, folder=OUT)
    return {path.name: path.read_bytes() for path in OUT.iterdir()}


def kept() -> list[str]:
    return [path.name for path in Path(".sqlora").rglob("*") if path.is_file() and path.name != ".lock"]


def weights_object(cache: DvcCache) -> Path:
    return cache.path(hashlib.md5(MODEL["consolidated.00.pth"]).hexdigest())


def test_the_tar_goes_and_the_next_run_needs_no_network(
    repository: DvcCache, server: WebServer, body: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    url = server.serve("/x.tar?token=secret", body)
    assert fetch(server.url + "/gone.tar", url) == MODEL
    assert len(kept()) == 1  # the note
    assert weights_object(repository).samefile(OUT / "consolidated.00.pth")
    assert weights_object(repository).stat().st_mode & 0o777 == 0o444
    count = len(server.requests)
    capsys.readouterr()
    assert fetch(server.url + "/gone.tar", url) == MODEL
    assert len(server.requests) == count
    told = capsys.readouterr().err
    assert f"{server.url}/x.tar: taken from DVC's cache" in told
    assert "secret" not in told
    assert fetch(url, checksum="md5:" + hashlib.md5(body).hexdigest()) == MODEL  # that is another question
    assert len(server.requests) == count + 1


@pytest.mark.parametrize("harm", ["flip", "shorten", "delete", "note"])
def test_what_is_damaged_is_fetched_again(repository: DvcCache, server: WebServer, body: bytes, harm: str) -> None:
    url = server.serve("/x.tar", body)
    fetch(url)
    path = weights_object(repository)
    shutil.rmtree(OUT)
    path.chmod(0o644)
    if harm == "flip":
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    elif harm == "shorten":
        path.write_bytes(path.read_bytes()[:-1])
    elif harm == "delete":
        path.unlink()
    else:
        (note,) = Path(".sqlora/members").glob("*.json")
        note.write_text(json.dumps({"files": {"../evil": {"size": 1, "md5": "0" * 32}}}))
    assert fetch(url) == MODEL
    assert len(server.requests) == 2
    assert path.read_bytes() == MODEL["consolidated.00.pth"]
    assert len(kept()) == 1


def test_without_dvc_the_tar_stays(server: WebServer, body: bytes) -> None:
    url = server.serve("/x.tar", body)
    assert fetch(url) == fetch(url) == MODEL
    assert len(server.requests) == 1
    assert kept() == ["x.tar"]


def test_where_links_do_not_work_the_tar_stays(
    repository: DvcCache, server: WebServer, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    url = server.serve("/x.tar", body)
    assert fetch(url) == fetch(url) == MODEL
    assert len(server.requests) == 1
    assert kept() == ["x.tar"]


def test_a_users_own_files_stay_as_they_are(repository: DvcCache, here: Path, body: bytes) -> None:
    own = here / "own"
    own.mkdir()
    for name, content in MODEL.items():
        (own / name).write_bytes(content)
    assert fetch("x.tar") == fetch("own") == fetch("gone.tar", "own") == MODEL
    assert (here / "x.tar").read_bytes() == body
    assert {path.stat().st_nlink for path in own.iterdir()} == {1}
    assert not Path(".sqlora").exists()
    assert not weights_object(repository).exists()


def test_source_that_is_no_model(repository: DvcCache, server: WebServer, here: Path) -> None:
    url = server.serve("/x.tar", write_members(here / "y.tar", member("params.json", b"{}")).read_bytes())
    with pytest.raises(SqloraError) as caught:
        fetch(url)
    assert "no consolidated.00.pth among params.json" in caught.value.found


@pytest.mark.parametrize(
    ("types", "factor", "purpose"),
    [("copy", 4, "DVC's copies, when the tar is gone"), ("hardlink", 2, "the converted one when the tar is gone")],
)
def test_download_that_cannot_end_well_is_refused_at_once(
    repository: DvcCache,
    server: WebServer,
    body: bytes,
    monkeypatch: pytest.MonkeyPatch,
    types: str,
    factor: int,
    purpose: str,
) -> None:
    with open(".dvc/config", "a") as config:
        config.write(f"[cache]\n    type = {types}\n")
    url = server.serve("/x.tar", body)
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=factor * len(body) - 1))
    with pytest.raises(SqloraError) as caught:
        fetch(url)
    assert purpose in caught.value.expected
    assert caught.value.expected.startswith(f"{factor * len(body) / 1e9:.3g} GB: ")
    assert kept() == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=factor * len(body)))
    assert fetch(url) == MODEL
    monkeypatch.setattr(shutil, "disk_usage", usage)
