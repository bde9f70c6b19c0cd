"""A small made-up run, as the stages before the report leave it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from contract import ROOT

from sqlora.jsonl import write_jsonl
from sqlora.params.all import check_params
from sqlora.params.lora import LoraParams
from sqlora.params.train import TrainParams
from sqlora.report.page import Run
from sqlora.report.results import MEASURES, STRICT, LossPoint, Training
from sqlora.report.run import Files, read_run
from sqlora.report.side_by_side.gather import Pair, Side
from sqlora.score import revisions
from sqlora.score.components import COMPONENTS
from sqlora.score.judge import judge
from sqlora.score.predictions import Prediction
from sqlora.score.revisions import Comparison
from sqlora.score.summary import BREAKDOWN_COLUMNS, breakdown_rows, compare, summarise
from sqlora.sql.execute import build_database
from sqlora.text import Example, render_sql, write_examples
from sqlora.wikisql.layout import LogicalForm, Table

EXAMPLES = 43
HOSTILE = "\x1b[2J\u202e</pre><script>alert('x')</script><img src=//evil.example/x onerror=alert(1)>"
LORA = LoraParams("lora", 8, 16, 20.0, 0.0, ("q_proj", "v_proj"))
TRAIN: TrainParams = check_params(ROOT / "params.yaml")["train"]
TRAIN = replace(TRAIN, batch_size=4, iterations=500, learning_rate=2e-3)
TRAINING = {
    "iterations": 500,
    "final_train_loss": 0.2131,
    "final_valid_loss": 0.2519,
    "first_valid_loss": 5.2134,
    "tokens_per_second": 1912.4,
    "peak_memory_gb": 0.834,
    "trainable_parameters": 1_703_936,
    "total_parameters": 7_241_732_096,
}
PART = {
    "examples": 1000,
    "tables": 250,
    "aggregates": {"none": 700, "MAX": 0, "COUNT": 300},
    "conditions": {"1": 990, "2": 10},
    "tokens": {"mean": 97.5, "median": 95, "p95": 131, "max": 1234},
    "completion_tokens": {"mean": 31.5, "median": 30, "p95": 50, "max": 77},
    "degenerate": 80,
    "duplicates": 0,
    "values_in_question": 0.98,
    "questions_without_value": 20,
    "questions_in_train": 3,
    "unreadable": 0,
}
_SHARES = dict.fromkeys((*MEASURES, *STRICT.values()), 0.2)
_SYSTEM = _SHARES | {
    "components": dict.fromkeys(COMPONENTS, 0.2),
    "intervals": {key: [0.1, 0.3] for key in (*_SHARES, *COMPONENTS)} | {"valid_sql": [0.1, 0.4]},
    "outcomes": {"ok": 1},
    "disagreements": {},
}
_CHANGE = {"both_right": 0, "fixed": 1, "broken": 0, "both_wrong": 0}
_CHANGE |= {"difference": 0.1, "interval": [0.0, 0.2], "p_value": 0.5}
SCORES = json.dumps({"examples": 1, "base": _SYSTEM, "adapter": _SYSTEM, "comparison": {"execution": _CHANGE}})
LOSS_HEADER = "iteration,train_loss,valid_loss,tokens_per_second,peak_memory_gb"


def question(index: int) -> Example:
    header = ("No.", "Player <b>", "Club")
    form = LogicalForm(1, 0, ((2, 0, f"Club {index}"), (0, 0, 7)))
    return Example(f"1-{index}-1", f"Who is seven of club {index} & co?", header, ("real", "text", "text"), form)


def table(example: Example, index: int) -> Table:
    rows = [(number, f"Ann {index}-{number}", f"Club {index}" if number > 3 else "Ajax") for number in range(9)]
    return Table(example.table_id, example.header, example.types, tuple(rows))


def answer(example: Example, index: int) -> Prediction:
    """Right for even questions; otherwise wrong, without an end or about another table."""
    gold = " " + render_sql(example.sql, example)
    if index % 2 == 0:
        return Prediction(gold, True, 20)
    return [
        Prediction(gold.replace("No. = 7", "No. = 8"), True, 20),
        Prediction(gold + " blowing off the rosshill", False, 100),
        Prediction(gold.replace(example.table_id, "1-999-1"), True, 20),
    ][index // 2 % 3]


def write_made_up_run(root: Path) -> None:
    """A repository after a run of 43 questions; the base model babbles and stops for the last one only."""
    examples = [question(index) for index in range(EXAMPLES)]
    answers = {
        "base": [Prediction(f"\n{index}{HOSTILE}\n" * 3, index == EXAMPLES - 1, 99) for index in range(EXAMPLES)],
        "adapter": [answer(example, index) for index, example in enumerate(examples)],
    }
    write_run(root, examples, answers)


def write_run(root: Path, examples: list[Example], answers: dict[str, list[Prediction]]) -> None:
    dataset = root / "artifacts/dataset"
    for folder in (dataset, root / "artifacts/predictions", root / "results"):
        folder.mkdir(parents=True, exist_ok=True)
    write_examples(dataset / "test.jsonl", examples)
    build_database(dataset / "tables.db", [table(example, index) for index, example in enumerate(examples)])
    scores: dict[str, object] = {"examples": len(examples)}
    verdicts = {}
    breakdown: list[Sequence[object]] = [BREAKDOWN_COLUMNS]
    for system, predictions in answers.items():
        write_jsonl(
            root / f"artifacts/predictions/{system}.jsonl",
            (
                {"index": index, "completion": one.completion, "stopped": one.stopped, "tokens": one.tokens}
                for index, one in enumerate(predictions)
            ),
        )
        verdicts[system] = judge(examples, predictions, dataset / "tables.db")
        scores[system] = summarise(examples, predictions, verdicts[system])
        breakdown += breakdown_rows(system, examples, verdicts[system])
    scores["comparison"] = compare(verdicts["base"], verdicts["adapter"])
    (root / "results/breakdown.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in breakdown))
    (root / "results/dataset.json").write_text(json.dumps(dict.fromkeys(("train", "valid", "test"), PART)))
    (root / "results/details.json").write_text(json.dumps(scores))
    (root / "results/training.json").write_text(json.dumps(TRAINING))
    shutil.copy(ROOT / "params.yaml", root)
    (root / "results/loss.csv").write_text(
        f"{LOSS_HEADER}\n0,,5.2134,,0.4\n10,4.5,,900.0,0.8\n500,0.2131,0.2519,910.0,0.8\n"
    )


def load(root: Path) -> Run:
    predictions = {name: root / f"artifacts/predictions/{name}.jsonl" for name in ("base", "adapter")}
    names = ("details.json", "breakdown.csv", "training.json", "loss.csv", "dataset.json")
    files = Files(root / "artifacts/dataset", predictions, *(root / "results" / name for name in names))
    return read_run(files, check_params(ROOT / "params.yaml") | {"lora": LORA, "train": TRAIN})


def make_pair(first_name: str = "main", second_name: str = "a-branch") -> Pair:
    """Two runs on the same 43 questions: the second one breaks question 1 and fixes questions 2 and 4."""
    examples = [question(index) for index in range(EXAMPLES)]
    before = [answer(example, index) for index, example in enumerate(examples)]
    after = list(before)
    after[0] = Prediction(HOSTILE, True, 9)
    for index in (1, 3):
        after[index] = answer(examples[index], 0)
    with tempfile.TemporaryDirectory() as folder:
        db = Path(folder) / "tables.db"
        build_database(db, [table(example, index) for index, example in enumerate(examples)])
        runs = [
            revisions.Run(name, examples, predictions, judge(examples, predictions, db))
            for name, predictions in ((first_name, before), (second_name, after))
        ]
    optional = dict.fromkeys(
        ("frozen_seconds", "validation_seconds", "workers", "published_iteration", "best_valid_loss")
    )
    training = Training(
        **TRAINING, **optional, train_seconds=90.0, predicted_peak_memory_gb=None, environment=(("mlx", "0.32.4"),)
    )
    loss = [LossPoint(0, None, 5.2, 0.4), LossPoint(10, 4.5, None, 0.8), LossPoint(500, 0.2, 0.25, 0.8)]
    first = Side(first_name, "0123abc One", {"lora.layers": 8, "train.loss": "all", "gone.key": True}, training, loss)
    second = Side(
        second_name,
        "4567def Another",
        {"lora.layers": 4, "train.loss": "all", "lora.targets": ["q_proj", "v_proj"]},
        replace(training, train_seconds=45.0, environment=(("mlx", "0.33.0"), ("numpy", "2.3.5"))),
        loss[:2],
    )
    return Pair(first, second, Comparison(*runs, left_out=2))
