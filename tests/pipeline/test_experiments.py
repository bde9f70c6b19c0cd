"""DVC's experiments on this pipeline: three runs of other batch sizes and layers, and the tables that compare them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from project import Project

# Batch size x layers, two of them queued and one in the workspace; each step count shows 12, 6 and 3 examples.
QUEUED = {
    "b2-l2": {"train.batch_size": 2, "lora.layers": 2, "train.learning_rate": 0.05},
    "b1-l1": {"train.batch_size": 1, "lora.layers": 1},
}
HERE = {"b4-l2": {"train.batch_size": 4, "lora.layers": 2}}
EVERY = QUEUED | HERE
REVISIONS = ["HEAD", *EVERY]


@pytest.fixture(scope="module")
def project(original: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A commit and three experiments that derive from it."""
    folder = tmp_path_factory.mktemp("experiments") / "copy"
    shutil.copytree(original.folder, folder, symlinks=True)
    project = Project(folder)
    for words in (["config", "user.email", "a@example.org"], ["config", "user.name", "a"], ["add", "-A"]):
        succeed(project, "git", *words)
    succeed(project, "git", "commit", "-q", "-m", "baseline")
    for name, values in QUEUED.items():
        succeed(project, "dvc", "exp", "run", "--queue", "-n", name, "-S", "train.iterations=3", *settings(values))
    for name, values in HERE.items():
        succeed(project, "dvc", "exp", "run", "-n", name, "-S", "train.iterations=3", *settings(values))
    # A queued experiment runs the code that it was queued with, whatever becomes of the workspace's.
    module = folder / "src/sqlora/errors.py"
    code = module.read_text()
    module.write_text("raise SystemExit('the code of the workspace')\n")
    succeed(project, "dvc", "exp", "run", "--run-all")
    module.write_text(code)
    return project


def settings(values: dict[str, Any]) -> list[str]:
    return [word for name, value in values.items() for word in ("-S", f"{name}={value}")]


def succeed(project: Project, *command: str) -> str:
    done = project.run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def table(project: Project) -> dict[str, dict[str, Any]]:
    """Experiment -> its row of `dvc exp show`."""
    (_, baseline) = json.loads(succeed(project, "dvc", "exp", "show", "--json"))
    return {found["name"]: found["revs"][0]["data"] for found in baseline["experiments"]}


def metrics(row: dict[str, Any], file: str) -> dict[str, Any]:
    found: dict[str, Any] = row["metrics"][f"results/{file}.json"]["data"]
    return found


def test_the_table_has_all_experiments_with_their_parameters_and_scores(
    project: Project, table: dict[str, dict[str, Any]]
) -> None:
    assert table.keys() == EVERY.keys()
    for name, row in table.items():
        for key, value in EVERY[name].items():
            section, parameter = key.split(".")
            assert row["params"]["params.yaml"]["data"][section][parameter] == value
        assert metrics(row, "training")["iterations"] == 3
        assert re.fullmatch(r"0\.000 to 0\.\d{3}", metrics(row, "score")["adapter"]["execution_interval"])
    shown = succeed(project, "dvc", "exp", "show", "--no-pager", "--md", "--only-changed")
    assert all(f"[{name}]" in shown for name in EVERY)
    losses = {metrics(row, "training")["final_valid_loss"] for row in table.values()}
    assert len(losses) == 3


def test_frozen_layers_are_computed_once_for_all_ways_to_run(table: dict[str, dict[str, Any]]) -> None:
    # The run in the workspace had the baseline's 8 examples and computed 8 others. The queued one with as many layers
    # finds all of its own, though it ran in a copy of the project; another number of layers has states of its own.
    counts = {
        name: (metrics(row, "training")["states_computed"], metrics(row, "training")["states_reused"])
        for name, row in table.items()
    }
    assert counts == {"b4-l2": (8, 8), "b2-l2": (0, 10), "b1-l1": (7, 0)}


def test_what_a_queued_run_leaves_in_sqlora_stays(project: Project) -> None:
    state = project.folder / ".sqlora"
    assert len(list((state / "states").iterdir())) == 2  # one for each number of layers
    assert not list((project.folder / ".dvc/tmp/exps").glob("*/.sqlora"))
    assert succeed(project, "git", "status", "--short", "--untracked-files=all", ".sqlora") == ""


def test_params_diff(project: Project) -> None:
    lines = succeed(project, "dvc", "params", "diff", "HEAD", "b1-l1").splitlines()
    assert [line.split() for line in lines] == [
        ["Path", "Param", "HEAD", "b1-l1"],
        ["params.yaml", "lora.layers", "2", "1"],
        ["params.yaml", "train.batch_size", "2", "1"],
        ["params.yaml", "train.iterations", "2", "3"],
    ]


def test_metrics_diff_fits_a_screen_and_has_intervals(project: Project) -> None:
    changed = succeed(project, "dvc", "metrics", "diff", "HEAD", "b2-l2")
    assert re.search(r"^results/training.json +final_valid_loss +[\d.]+ +[\d.]+ +-?[\d.]+$", changed, re.MULTILINE)
    every = succeed(project, "dvc", "metrics", "diff", "HEAD", "b2-l2", "--all")
    assert re.search(r"adapter.execution_interval +0\.000 to 0\.434 +0\.000 to 0\.434", every)
    lines = every.splitlines()
    assert len(lines) < 40
    assert max(map(len, lines)) <= 120
    assert "dataset.json" not in every


def test_plots_compare_the_revisions(project: Project, tmp_path: Path) -> None:
    succeed(project, "dvc", "plots", "diff", *REVISIONS, "--out", str(tmp_path))
    html = (tmp_path / "index.html").read_text()
    charts = {
        name: json.loads(text)
        for name, text in re.findall(r'<div id = "([^"]+)">.*?var spec = (\{.*?\});\s*vegaEmbed', html, re.DOTALL)
    }
    titles = {name: chart["title"]["text"] for name, chart in charts.items()}
    assert titles == {
        "Loss": "Loss of training and validation",
        "Learning_rate": "Learning rate",
        "Accuracy_by_number_of_conditions": "Execution accuracy of the adapter by conditions, with 95% intervals",
        "results_dataset_json": "Length of the examples",
        "results_loss_csv": "Speed of training",
        "results_details_json": "Scores of the test questions, with 95% intervals",
        "results_breakdown_csv": "Execution accuracy of the adapter by aggregate, with 95% intervals",
        "results_errors_csv": "Outcomes of the questions in errors.csv: the adapter's errors and a few others",
    }
    for name, chart in charts.items():
        assert {row["rev"] for row in chart["data"]["values"]} == set(REVISIONS), name
        labels = [found for found in re.findall(r'"title": "([^"]*)"', json.dumps(chart)) if found]
        assert len(labels) >= 2, name  # of the axes
        assert "<DVC_METRIC" not in json.dumps(chart), name
    loss = charts["Loss"]
    assert {row["field"] for row in loss["data"]["values"]} == {"train_loss", "valid_loss"}
    # A row of loss.csv that has no validation would else be drawn as a loss of zero.
    (condition,) = loss["transform"]
    assert condition == {"filter": "datum['dvc_inferred_y_value'] > 0"}
    assert charts["results_loss_csv"]["transform"] == [{"filter": "datum['tokens_per_second'] !== ''"}]
    for name, breakdown in (("results_breakdown_csv", "aggregate"), ("Accuracy_by_number_of_conditions", "conditions")):
        assert f"datum.breakdown === '{breakdown}'" in charts[name]["transform"][0]["filter"]
        assert any(row["breakdown"] == breakdown for row in charts[name]["data"]["values"])


# Last of all: it changes the workspace.
def test_apply(project: Project, table: dict[str, dict[str, Any]]) -> None:
    succeed(project, "dvc", "exp", "apply", "b2-l2")
    params = (project.folder / "params.yaml").read_text()
    assert "learning_rate: 0.05" in params
    training = json.loads((project.folder / "results/training.json").read_text())
    assert training.pop("environment"), "a list, which no table shows"
    assert training == metrics(table["b2-l2"], "training")
    assert project.repro() == set()
