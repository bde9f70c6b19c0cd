"""Two clones and a remote, in a folder and on an S3 server: what travels, what runs again, what is found damaged."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract import ROOT
from project import Project
from ruamel.yaml import YAML
from s3_server import S3Server
from team import Remote, clone, commit, copy_of, fails, folder_remote, md5_of, must, object_path, s3_remote

AFTER_TRAINING = {"train", "generate_adapter", "score", "report"}
WORKFLOW = ROOT / ".github/workflows/reproduce.yml"
ADAPTER = "artifacts/adapter/adapters.safetensors"


@pytest.fixture(scope="module")
def s3_server() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.close()


@pytest.fixture(params=["folder", "s3"])
def remote(
    request: pytest.FixtureRequest, tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> Remote:
    if request.param == "folder":
        return folder_remote(tmp_path / "shared folder")
    return s3_remote(s3_server, tmp_path.name, monkeypatch)


@pytest.fixture(scope="module")
def two_runs(original: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A repository with two committed runs: 3 iterations, then 2 as in the original."""
    project = copy_of(original, tmp_path_factory.mktemp("runs") / "a")
    project.set(train__iterations=3)
    assert project.repro() == AFTER_TRAINING
    commit(project, "3 iterations")
    project.set(train__iterations=2)
    project.repro()
    commit(project, "2 iterations")
    return project


@pytest.fixture
def a(two_runs: Project, remote: Remote, tmp_path: Path) -> Project:
    """A's clone, after `make share`."""
    project = copy_of(two_runs, tmp_path / "a")
    remote.use(project)
    must(project, "python", "-m", "sqlora", "share", remote.url)
    commit(project, "the remote")
    return project


def test_b_gets_everything_and_runs_only_what_a_parameter_concerns(a: Project, remote: Remote, tmp_path: Path) -> None:
    b = clone(a, tmp_path / "b")
    must(b, "dvc", "pull", "--run-cache")
    assert b.repro() == set()
    assert "up to date" in must(b, "dvc", "status")
    assert must(b, "git", "status", "--porcelain") == ""
    # The run cache came along, so A's other run is fetched instead of trained.
    b.set(train__iterations=3)
    printed = must(b, "dvc", "repro", "--pull")
    assert printed.count("is cached - skipping run") == 3
    assert printed.count("Running stage") == 1  # the report, of which DVC caches no run
    assert must(b, "git", "diff", "HEAD~2", "--", "results/score.json") == ""

    # As the workflow for teams does it: nothing is pulled but what the stages that run read.
    c = clone(a, tmp_path / "c")
    base = must(c, "git", "rev-parse", "HEAD").strip()
    c.set(train__iterations=1)
    printed = must(c, "bash", "-e", "-c", step("Reproduce"))
    ran = {line.split("'")[1] for line in printed.splitlines() if line.startswith("Running stage")}
    assert ran == AFTER_TRAINING
    assert not (c.folder / "artifacts/source-model").exists()
    source = md5_of(a.folder / "artifacts/source-model/consolidated.00.pth")
    assert object_path(source) in remote.objects()
    assert not (c.folder / ".dvc/cache" / object_path(source)).exists()
    must(c, "env", f"BASE={base}", "GITHUB_STEP_SUMMARY=/dev/null", "bash", "-e", "-c", step("Compare"))
    comment = (c.folder / "comment.md").read_text()
    assert "dvc.lock is **not** up to date: stages ran. Run `dvc repro`" in comment
    assert re.search(r"\| params.yaml \| train.iterations \| 2 +\| 1 +\|", comment), comment
    assert re.search(r"\| results/training.json +\| iterations +\| 2 +\| 1 +\| -1 +\|", comment), comment


def step(name: str) -> str:
    """The commands of a step of the workflow for teams."""
    steps = YAML(typ="safe").load(WORKFLOW.read_text())["jobs"]["reproduce"]["steps"]
    return str(next(step for step in steps if step.get("name") == name)["run"])


def test_the_workflow_for_teams_is_sound() -> None:
    workflow = YAML(typ="safe").load(WORKFLOW.read_text())
    assert workflow["on"] == "pull_request"
    for one in workflow["jobs"]["reproduce"]["steps"]:
        assert ("uses" in one) != ("run" in one)
        subprocess.run(["bash", "-n", "-c", one.get("run", "")], check=True)
    install = step("Install")
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)$", install, re.MULTILINE):
        assert f"\n{target}:" in makefile
    assert set(re.findall(r"\S+==\S+", install)) <= set((ROOT / "requirements-dev.txt").read_text().split())


def test_make_hands_its_arguments_on() -> None:
    def shown(*arguments: str) -> str:
        # The tests may run under make themselves, which then would say where it goes.
        command = ["make", "--no-print-directory", "-n", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert shown("share", "REMOTE=/mnt/a team").endswith('python -m sqlora share "/mnt/a team"\n')
    assert shown("share").rstrip().endswith("python -m sqlora share")
    assert shown("setup-cache", "LINK=copy").endswith('python -m sqlora setup-cache --type "copy"\n')
    assert shown("setup-cache").rstrip().endswith("python -m sqlora setup-cache")


def test_dvc_push_sends_another_run_without_its_outputs_and_share_with_them(
    two_runs: Project, remote: Remote, tmp_path: Path
) -> None:
    a = copy_of(two_runs, tmp_path / "a")
    must(a, "git", "checkout", "--quiet", "HEAD~1")
    must(a, "dvc", "checkout")
    other = object_path(md5_of(a.folder / ADAPTER))
    must(a, "git", "checkout", "--quiet", "-")
    must(a, "dvc", "checkout")
    remote.use(a)
    must(a, "dvc", "push", "--run-cache")
    assert other not in remote.objects()
    assert sum(path.startswith("runs/") for path in remote.objects()) == 11  # eight stages, three of them twice
    # The other run's commit does not know the remote, so DVC passes it over.
    must(a, "dvc", "push", "--run-cache", "--all-commits")
    assert other not in remote.objects()
    commit(a, "the remote")
    a.set(split__train_size=13)
    printed = must(a, "python", "-m", "sqlora", "share")
    assert "Not committed yet: .dvc/config, params.yaml" in printed
    assert other in remote.objects()


def test_a_damaged_object_in_the_remote_is_found_and_sent_again(a: Project, remote: Remote, tmp_path: Path) -> None:
    path = object_path(md5_of(a.folder / ADAPTER))
    good = remote.objects()[path]
    remote.replace(path, good[:-1] + bytes([good[-1] ^ 1]))
    # B's pull hashes what arrives, because `make share` has set verify.
    b = clone(a, tmp_path / "b")
    assert "artifacts/adapter" in fails(b, "dvc", "pull")
    assert not (b.folder / ".dvc/cache" / path).exists()
    found = fails(a, "python", "-m", "sqlora", "verify", "--remote")
    assert "1 damaged" in found
    assert "dvc push artifacts/adapter" in found
    # What it says, with the storage's own tool.
    listing = next(name for name in remote.objects() if name.endswith(".dir") and md5_in(remote, name, path))
    remote.replace(path, None)
    remote.replace(listing, None)
    must(a, "dvc", "push", "artifacts/adapter")
    assert remote.objects()[path] == good
    assert "0 damaged" in must(a, "python", "-m", "sqlora", "verify", "--remote")
    must(b, "dvc", "pull")
    assert md5_of(b.folder / ADAPTER) == md5_of(a.folder / ADAPTER)


def md5_in(remote: Remote, listing: str, path: str) -> bool:
    return path.removeprefix("files/md5/").replace("/", "") in remote.objects()[listing].decode()
