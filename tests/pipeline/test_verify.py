"""`python -m sqlora verify` in a small DVC repository: flipped bits are found and the printed commands mend them."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from sqlora.verify.command import run

ROOT = Path(__file__).parents[2]
MAKE = """
import json, pathlib, struct
folder = pathlib.Path("model of mine")
folder.mkdir()
header = json.dumps({"w": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}}).encode()
(folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(range(250)) * 16)
(folder / "sub").mkdir()
(folder / "sub/config.json").write_text("{}")
pathlib.Path("one.bin").write_bytes(b"one" * 100)
pathlib.Path("scores.json").write_text('{"right": 1}')
"""
PIPELINE = """
stages:
  make:
    cmd: python make.py
    deps: [make.py]
    outs:
      - model of mine
      - one.bin
    metrics:
      - scores.json: {cache: false}
"""
WEIGHTS, SCORES = "model of mine/model.safetensors", "scores.json"


class Repository:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, command: str) -> str:
        """A shell command's output; it must succeed."""
        done = self._run(command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def _run(self, command: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT / "src"), "DVC_NO_ANALYTICS": "1"}
        return subprocess.run(
            command, shell=True, cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )

    def verify(self, options: str = "", status: int = 1) -> str:
        """What it prints, without the second that a process of its own takes to import dvc."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            found = run(Path(), remote="--remote" in options, as_json="--json" in options)
        assert found == status, printed.getvalue()
        return printed.getvalue()

    def command(self, options: str = "", status: int = 1) -> str:
        """What the command prints."""
        done = self._run(f"python -m sqlora verify {options}")
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return " ".join((done.stdout or done.stderr).split())

    def found(self, options: str = "--json") -> dict[str, Any]:
        return dict(json.loads(self.verify(options)))

    def files(self) -> dict[str, bytes]:
        return {name: (self.folder / name).read_bytes() for name in (WEIGHTS, "one.bin", SCORES)}

    def object(self, path: str, place: str = ".dvc/cache") -> Path:
        """Where the bytes of a file of the workspace are kept."""
        md5 = hashlib.md5((self.folder / path).read_bytes()).hexdigest()
        return self.folder / place / "files/md5" / md5[:2] / md5[2:]

    def mend(self, options: str = "", *, uses: str) -> None:
        """Run the printed commands, and see that all is well again; `uses` must be among them."""
        commands = [line.strip() for line in self.verify(options).split("verify again:\n")[1].splitlines()]
        commands = [line for line in commands if not line.startswith("A stage that")]
        assert any(uses in command for command in commands), commands
        for command in commands:
            self.run(command)
        assert "0 damaged" in self.verify(options, status=0)


def flip_bit(path: Path) -> None:
    """As a disk does it: neither the size nor the date changes, whatever the file's mode."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(status.st_mode)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    folder = tmp_path_factory.mktemp("verify") / "pristine"
    folder.mkdir()
    (folder / "make.py").write_text(MAKE)
    (folder / "dvc.yaml").write_text(PIPELINE)
    repository = Repository(folder)
    repository.run(
        "git init -q && git config user.email a@example.org && git config user.name a && dvc init -q && dvc repro -q"
        " && git add . && git commit -qm all && dvc remote add -q -d team store && dvc push -q"
    )
    return repository


@pytest.fixture
def repository(pristine: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    shutil.copytree(pristine.folder, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    return Repository(tmp_path / "copy")


@pytest.fixture
def without_remote(repository: Repository) -> Repository:
    repository.run("dvc remote remove team && rm -rf store")
    return repository


def test_all_is_well(repository: Repository) -> None:
    # Three files and scores.json in the workspace; three and a listing in the cache, and in the remote.
    assert repository.verify("--remote", status=0).startswith("12 files in workspace, cache and remote, 0 damaged")
    assert repository.verify(status=0).startswith("8 files in workspace and cache")


def test_bit_flip_in_the_workspace(repository: Repository) -> None:
    good = repository.files()
    repository.run("dvc status -q")  # DVC notes size, date and inode
    flip_bit(repository.folder / WEIGHTS)
    (damage,) = repository.found()["damaged"]
    assert (damage["where"], damage["path"], damage["stage"]) == ("workspace", WEIGHTS, "make")
    assert damage["expected"] == hashlib.md5(good[WEIGHTS]).hexdigest()
    assert damage["found"] == hashlib.md5((repository.folder / WEIGHTS).read_bytes()).hexdigest()
    repository.mend(uses="dvc checkout --force 'model of mine'")
    assert repository.files() == good


def test_missing_and_foreign_files_in_the_workspace(repository: Repository) -> None:
    good = repository.files()
    (repository.folder / WEIGHTS).unlink()
    (repository.folder / "model of mine/foreign").touch()
    found = {damage["path"]: (damage["found"], damage["expected"]) for damage in repository.found()["damaged"]}
    assert found[WEIGHTS] == ("no such file", hashlib.md5(good[WEIGHTS]).hexdigest())
    assert found["model of mine/foreign"][1] is None
    repository.mend(uses="dvc checkout --force 'model of mine'")
    assert repository.files() == good


def test_a_folder_in_the_place_of_a_file(repository: Repository) -> None:
    good = repository.files()
    (repository.folder / WEIGHTS).unlink()
    (repository.folder / WEIGHTS).mkdir()
    repository.mend(uses="rm -rf 'model of mine/model.safetensors'")
    assert repository.files() == good


@pytest.mark.parametrize("in_git", [True, False])
def test_damaged_result_that_dvc_does_not_keep(repository: Repository, in_git: bool) -> None:
    good = repository.files()
    if not in_git:
        repository.run(f"git rm -q --cached {SCORES} && git commit -qm less")
    (repository.folder / SCORES).write_text("{}")
    repository.mend(uses="git checkout HEAD -- scores.json" if in_git else "dvc repro --force --single-item make")
    assert repository.files() == good


def test_bit_flip_in_the_cache(repository: Repository) -> None:
    good, place = repository.files(), repository.object(WEIGHTS)
    flip_bit(place)
    assert place.stat().st_mode & 0o777 == 0o444
    (damage,) = repository.found()["damaged"]
    assert (damage["where"], Path(damage["path"]).parts[-2:]) == ("cache", place.parts[-2:])
    repository.mend(uses="cp 'model of mine/model.safetensors'")  # the workspace has it, so nothing is downloaded
    assert place.read_bytes() == good[WEIGHTS]
    assert place.stat().st_mode & 0o777 == 0o444


def test_bit_flip_in_the_cache_and_nothing_in_the_workspace(repository: Repository) -> None:
    good, place = repository.files(), repository.object(WEIGHTS)
    flip_bit(place)
    shutil.rmtree(repository.folder / "model of mine")
    repository.mend("--remote", uses="dvc fetch 'model of mine'")
    repository.run("dvc checkout -q")
    assert repository.files() == good


def test_the_same_damage_everywhere_but_in_the_remote(repository: Repository) -> None:
    # With cache.type hardlink, the workspace's file is the cache's.
    repository.run("dvc config cache.type hardlink && dvc checkout -q --relink")
    good, place = repository.files(), repository.object(WEIGHTS)
    assert place.samefile(repository.folder / WEIGHTS)
    flip_bit(place)
    assert {damage["where"] for damage in repository.found()["damaged"]} == {"cache", "workspace"}
    repository.mend(uses="dvc fetch 'model of mine'")
    assert repository.files() == good


def test_the_same_damage_everywhere_and_no_remote(without_remote: Repository) -> None:
    good, place = without_remote.files(), without_remote.object(WEIGHTS)
    flip_bit(without_remote.folder / WEIGHTS)
    flip_bit(place)
    without_remote.mend(uses="dvc repro --force --single-item make")
    assert without_remote.files() == good


@pytest.mark.parametrize("remote", [True, False])
def test_damaged_listing_in_the_cache(repository: Repository, remote: bool) -> None:
    if not remote:
        repository.run("dvc remote remove team && rm -rf store")
    (listing,) = (repository.folder / ".dvc/cache").rglob("*.dir")
    flip_bit(listing)
    (damage,) = repository.found()["damaged"]
    assert damage["expected"] == damage["expected"].removesuffix(".dir") + ".dir"
    repository.mend("--remote" * remote, uses="dvc fetch" if remote else "dvc commit --force make")


def test_damaged_listing_and_a_damaged_folder(without_remote: Repository) -> None:
    good = without_remote.files()
    (listing,) = (without_remote.folder / ".dvc/cache").rglob("*.dir")
    flip_bit(listing)
    flip_bit(without_remote.folder / WEIGHTS)
    found = without_remote.found()
    assert found["unread"] == ["model of mine"]
    without_remote.mend(uses="dvc repro --force --single-item make")
    assert without_remote.files() == good


@pytest.mark.parametrize("lost", [False, True])
def test_damage_in_a_remote(repository: Repository, lost: bool) -> None:
    good, place = repository.files(), repository.object(WEIGHTS, "store")
    repository.run("dvc push -q")  # DVC remembers that everything is there
    if lost:
        place.unlink()
    else:
        flip_bit(place)
    assert "0 damaged" in repository.verify(status=0)
    (damage,) = repository.found("--json --remote")["damaged"]
    assert (damage["where"], damage["path"]) == ("remote", str(place))
    repository.mend("--remote", uses="dvc push 'model of mine'")
    assert place.read_bytes() == good[WEIGHTS]


def test_damage_in_the_remote_and_in_the_cache(repository: Repository) -> None:
    good = repository.files()
    places = [repository.object(WEIGHTS), repository.object(WEIGHTS, "store")]
    for place in places:
        flip_bit(place)
    repository.mend("--remote", uses="cp 'model of mine/model.safetensors'")
    assert [place.read_bytes() for place in places] == [good[WEIGHTS]] * 2


def test_what_was_never_pulled_is_no_damage(repository: Repository) -> None:
    repository.run("rm -rf .dvc/cache 'model of mine' one.bin")
    told = repository.verify("--remote", status=0)
    assert "not in the workspace, which is no damage: model of mine, one.bin" in told
    assert "not in the cache" in told
    # The workspace alone tells what the folder's files are.
    repository.run("dvc pull -q && rm -rf .dvc/cache")
    flip_bit(repository.folder / "one.bin")
    assert "one.bin" in repository.found()["damaged"][0]["path"]
    repository.mend(uses="dvc fetch one.bin")


def test_the_command(repository: Repository) -> None:
    assert "0 damaged" in repository.command("--remote", status=0)
    flip_bit(repository.folder / "one.bin")
    assert json.loads(repository.command("--json"))["restore"] == ["rm -f one.bin", "dvc checkout --force one.bin"]
    repository.run("dvc remote modify team url nowhere")
    assert "nothing at all was found in the remote: check its address" in repository.command("--remote")
    if importlib.util.find_spec("dvc_gs") is None:
        repository.run("dvc remote modify team url gs://bucket/x")
        assert "requires 'dvc-gs' to be installed; expected what" in repository.command("--remote")
    repository.run("rm dvc.lock && dvc remote remove team")
    assert "nothing to verify" in repository.command(status=0)
    assert "found no default remote" in repository.command("--remote")
    shutil.rmtree(repository.folder / ".dvc")
    assert "expected a DVC repository" in repository.command()


def test_an_object_that_is_gone_from_the_cache_is_told_with_what_keeps_the_stage_from_running_again(
    repository: Repository,
) -> None:
    path = repository.object("one.bin")
    path.parent.chmod(0o755)
    path.unlink()
    told = " ".join(repository.verify(status=0).split())
    assert "0 damaged" in told
    assert "not in the cache" in told
    assert "`dvc commit --force STAGE`" in told
    stage = next(iter(YAML(typ="safe").load(PIPELINE)["stages"]))
    repository.run(f"dvc commit --force {stage}")
    assert path.exists()
    assert "Running stage" not in repository.run("dvc repro")


def test_a_good_copy_takes_the_place_of_a_damaged_object_in_one_step(repository: Repository) -> None:
    flip_bit(repository.object("one.bin"))
    assert not any(command.startswith("rm ") for command in repository.found()["restore"])
