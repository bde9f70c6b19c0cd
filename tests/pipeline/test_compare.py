"""`python -m sqlora compare` and `report` between commits, with real git and dvc."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from project import Project


@pytest.fixture(scope="module")
def project(original: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two commits, and in each the predictions of a run; the second one's adapter answers the first question right."""
    folder = tmp_path_factory.mktemp("compare") / "copy"
    shutil.copytree(original.folder, folder, symlinks=True)
    project = Project(folder)
    git(project, "config", "user.email", "a@example.org")
    git(project, "config", "user.name", "a")
    # A tiny random model never writes SQL, so its predictions are written here, as the stage would.
    for number, right in enumerate(([1], [0, 1])):
        examples = [json.loads(line) for line in (folder / "artifacts/dataset/test.jsonl").open()]
        path = folder / "artifacts/predictions/adapter.jsonl"
        path.unlink()
        with open(path, "w") as handle:
            for index, example in enumerate(examples):
                completion = example["text"].partition("\nA:")[2] if index in right else "no"
                line = {"index": index, "completion": completion, "stopped": True, "tokens": 9}
                handle.write(json.dumps(line) + "\n")
        done = project.run("dvc", "commit", "-f", "generate_adapter")
        assert done.returncode == 0, done.stderr
        git(project, "add", "-A")
        git(project, "commit", "-q", "-m", str(number))
    return project


def git(project: Project, *words: str) -> None:
    done = project.run("git", *words)
    assert done.returncode == 0, done.stderr


def compare(project: Project, *words: str) -> tuple[int, str, str]:
    done = project.run(sys.executable, "-m", "sqlora", "compare", *words)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, " ".join(done.stderr.split())


def test_two_commits(project: Project) -> None:
    status, text, _ = compare(project, "HEAD~1", "HEAD")
    assert status == 0
    assert text.startswith("5 common test questions\n")
    assert "Execution accuracy" in text
    assert "20.0% [3.6%, 62." in text
    assert "Execution: 1 fixed, 0 broken, 1 right in both, 3 wrong in both" in text
    assert "difference +20.0 points" in text
    assert "p = 1.000 (McNemar): may well be chance" in text
    assert "fixed: " in text
    assert "broken: " not in text
    backwards = compare(project, "HEAD", "HEAD~1", "--list", "0")[1]
    assert "0 fixed, 1 broken" in backwards
    assert "1 more broken; --list 1 shows all" in backwards


def test_json(project: Project) -> None:
    status, text, _ = compare(project, "HEAD~1", "workspace", "--json")
    assert status == 0
    facts: dict[str, Any] = json.loads(text)
    assert [len(facts[change]) for change in ("fixed", "broken")] == [1, 0]
    assert facts["execution"]["fixed"] == 1
    assert [side["execution_accuracy"] for side in facts["revisions"]] == [0.2, 0.4]


def test_the_workspace_is_the_default_and_equals_its_commit(project: Project) -> None:
    text = compare(project, "HEAD")[1]
    assert "0 fixed, 0 broken, 2 right in both, 3 wrong in both" in text
    assert "McNemar" not in text


def test_the_base_model_can_be_compared_as_well(project: Project) -> None:
    assert "0 fixed, 0 broken, 0 right in both" in compare(project, "HEAD~1", "HEAD", "--system", "base")[1]


def test_questions_that_only_one_revision_has_are_left_out(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(project.folder, folder, symlinks=True)
    other = Project(folder)
    for path in (folder / "artifacts/dataset/test.jsonl", folder / "artifacts/predictions/adapter.jsonl"):
        lines = path.read_text().splitlines(keepends=True)
        path.unlink()
        path.write_text("".join(lines[:3]))
    text = compare(other, "HEAD")[1]
    assert text.startswith("3 common test questions (2 that only one revision has are left out)")
    (folder / "artifacts/dataset/test.jsonl").write_text(lines[0].replace("index", "text"))
    assert compare(other, "HEAD")[0] == 1


def test_a_question_that_stands_twice_counts_twice(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(project.folder, folder, symlinks=True)
    for name in ("artifacts/dataset/test.jsonl", "artifacts/predictions/adapter.jsonl"):
        path = folder / name
        lines = path.read_text().splitlines(keepends=True)
        path.unlink()
        path.write_text("".join([*lines, lines[0].replace('"index": 0', '"index": 5')]))
    assert compare(Project(folder), "workspace", "workspace")[1].startswith("6 common test questions\n")


def test_each_revision_is_executed_as_its_own_parameters_say(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(project.folder, folder, symlinks=True)
    other = Project(folder)
    other.set(score__execute="text")
    path = folder / "artifacts/predictions/adapter.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    gold = json.loads((folder / "artifacts/dataset/test.jsonl").read_text().splitlines()[2])["text"]
    line = json.loads(lines[2]) | {"completion": gold.partition("\nA:")[2] + " ORDER BY 1 LIMIT 100000"}
    path.unlink()
    path.write_text("".join([*lines[:2], json.dumps(line) + "\n", *lines[3:]]))
    text = compare(other, "workspace", "--json")
    outcomes = [side["outcomes"] for side in json.loads(text[1])["revisions"]]
    assert outcomes[0] == outcomes[1]
    assert sum(outcomes[0].values()) == 5


def test_mistakes(project: Project, tmp_path: Path) -> None:
    status, _, message = compare(project, "nosuch")
    assert status == 1
    assert message.startswith("error: revision nosuch: found unknown Git revision 'nosuch'; expected a branch")
    folder = tmp_path / "copy"
    shutil.copytree(project.folder, folder, symlinks=True)
    shutil.rmtree(folder / ".dvc/cache")
    status, _, message = compare(Project(folder), "HEAD~1")
    assert status == 1
    assert "artifacts/dataset/test.jsonl of HEAD~1: found no copy in DVC's cache or remote" in message
    assert "dvc fetch --all-commits" in message
    path = folder / "artifacts/predictions/adapter.jsonl"
    lines = path.read_text()
    path.unlink()
    path.write_text(lines.replace('"stopped": true', '"stopped": 1'))
    message = compare(Project(folder), "workspace", "workspace")[2]
    assert "error: artifacts/predictions/adapter.jsonl:1: found" in message
    path.unlink()
    status, _, message = compare(Project(folder), "workspace", "workspace")
    assert "adapter.jsonl: found no such file; expected a finished run" in message
    empty = tmp_path / "empty"
    empty.mkdir()
    for command in (("git", "init", "-q"), ("dvc", "init", "-q")):
        assert Project(empty).run(*command).returncode == 0
    assert "error: revision HEAD: found" in compare(Project(empty), "HEAD")[2]


def report(project: Project, *words: str) -> tuple[int, str, str]:
    done = project.run(sys.executable, "-m", "sqlora", "report", *words)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, " ".join(done.stderr.split())


def test_page_of_two_commits(project: Project, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    status, text, message = report(project, "HEAD~1", "HEAD", "--out", str(page))
    assert (status, text) == (0, f"HEAD~1 beside HEAD: {page}\n"), message
    html = page.read_text()
    assert "1 fixed, 0 broken, 1 right in both, 3 wrong in both. p = 1.000: may well be chance" in html
    assert "None: both have the same params.yaml." in html
    # The commits' subjects, which are "0" and "1" here.
    assert re.findall(r"<dd>[0-9a-f]{7,} (\d)</dd>", html) == ["0", "1"]


def test_page_of_a_commit_and_the_workspace(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(project.folder, folder, symlinks=True)
    other = Project(folder)
    other.set(lora__rank=4)
    loss = folder / "results/loss.csv"
    loss.write_text(re.sub(r"^2,[^,]*,", "2,0.125,", loss.read_text(), flags=re.MULTILINE))
    status, text, message = report(other, "HEAD~1")
    assert (status, text) == (0, "HEAD~1 beside workspace: comparison.html\n"), message
    html = (folder / "comparison.html").read_text()
    assert re.search(r"<code>lora.rank</code></th><td><code>2</code></td><td><code>4</code>", html)
    assert "workspace: training loss from 0.125 to 0.125" in html
    assert "HEAD~1: training loss from 0.125" not in html
    assert "as the files are now" in html
    assert other.run("git", "status", "--short", "comparison.html").stdout == ""  # not to be committed by mistake


def test_page_of_what_is_not_there(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(project.folder, folder, symlinks=True)
    other = Project(folder)
    status, _, message = report(other, "nosuch")
    assert status == 1
    assert message.startswith("error: revision nosuch: found unknown Git revision 'nosuch'; expected a branch, tag,")
    git(other, "checkout", "-q", "--orphan", "bare")
    git(other, "rm", "-q", "-r", "--cached", "results")
    git(other, "commit", "-q", "-m", "before any run")
    status, _, message = report(other, "bare")
    assert status == 1
    assert message.startswith("error: results/training.json of bare: found no such file in that revision; expected the")
    assert "dvc repro and commit results/" in message
    shutil.rmtree(folder / ".dvc/cache")
    status, _, message = report(other, "master" if "master" in other.run("git", "branch").stdout else "main")
    assert status == 1
    assert "found no copy in DVC's cache or remote" in message
    (folder / "results/loss.csv").unlink()
    assert "error: results/loss.csv: found no such file" in report(other, "workspace")[2]
    assert not (folder / "comparison.html").exists()


def test_a_damaged_result_names_its_revision(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(project.folder, folder, symlinks=True)
    other = Project(folder)
    (folder / "results/training.json").write_text('{"iterations": "2"}')
    git(other, "commit", "-q", "-a", "-m", "damaged")
    status, _, message = report(other, "HEAD")
    assert status == 1
    assert message.startswith("error: HEAD/results/training.json: found iterations '2'")
    assert message.endswith("Check HEAD out and run dvc repro there.")
