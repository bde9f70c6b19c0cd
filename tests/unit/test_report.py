"""The report page and the terminal summary, on a small made-up run."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from html_page import Page
from report_run import (
    EXAMPLES,
    LOSS_HEADER,
    PART,
    SCORES,
    TRAINING,
    answer,
    load,
    question,
    table,
    write_made_up_run,
    write_run,
)

from sqlora.errors import SqloraError
from sqlora.params.all import SECTIONS
from sqlora.report.breakdown import Group, read_breakdown
from sqlora.report.cases import OUTCOMES, spread, visible
from sqlora.report.curve import draw_loss, draw_memory
from sqlora.report.dataset import read_parts
from sqlora.report.failures import SHOWN, group_failures
from sqlora.report.intervals import draw_groups
from sqlora.report.page import DISAGREEMENTS, LABELS, render_page
from sqlora.report.results import LossPoint, read_loss, read_scores, read_training
from sqlora.report.summary import WIDTH, summarise_run
from sqlora.score.judge import Disagreement, Outcome, judge
from sqlora.score.predictions import Prediction
from sqlora.sql.execute import build_database
from sqlora.text import render_sql


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository after the made-up run."""
    write_made_up_run(tmp_path)
    return tmp_path


def test_page_is_well_formed_and_loads_nothing(root: Path) -> None:
    html = render_page(load(root))
    page = Page(html)
    tags = {tag for tag, _ in page.elements}
    assert {"main", "h1", "table", "svg", "article", "dl"} <= tags
    assert not tags & {"script", "img", "link", "iframe"}
    assert not page.values("src")
    assert all(link.startswith("#") for link in page.values("href") + page.values("xlink:href"))
    assert "url(http" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    labels = {name for value in page.values("aria-labelledby") for name in value.split()}
    assert labels <= set(ids)


def test_what_a_model_or_a_dataset_wrote_is_text(root: Path) -> None:
    html = render_page(load(root))
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in html
    assert "Player &lt;b&gt;" in html
    assert "&amp; co?" in html
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", html)
    assert "␛[2J\\u202e" in html


def test_twenty_questions_evenly_spaced(root: Path) -> None:
    page = Page(render_page(load(root)))
    assert sum(tag == "article" for tag, _ in page.elements) == 20
    indices = [int(number) - 1 for number in re.findall(r"Question (\d+), table", page.text)]
    assert indices == spread(EXAMPLES, 20) == [position * 43 // 20 for position in range(20)]
    for index in indices:
        example = question(index)
        assert f"Who is seven of club {index} & co? Question {index + 1}, table 1-{index}-1 , 9 rows" in page.text
        assert f"{render_sql(example.sql, example)} returns ann {index}-7" in page.text  # the gold SQL and its result
    assert spread(3, 20) == [0, 1, 2]


def test_marks_and_results(root: Path) -> None:
    page = Page(render_page(load(root)))
    articles = page.text.split("Question ")[1:]
    by_number = {int(article.split(",")[0]): article for article in articles}
    assert "Adapter ✓ right" in by_number[1]
    assert re.search(r"Adapter – no_stop SELECT .* rosshill went on until the token limit", by_number[16])
    assert re.search(r"Adapter ✗ wrong SELECT .* returns ann 19-8 *$", by_number[20].split(" Who is ")[0])
    marks = [re.search(r"Adapter . (\w+)", article).group(1) for article in articles]  # type: ignore[union-attr]
    wrong = ["wrong", "no_stop", "wrong_table"]
    assert marks == ["right" if index % 2 == 0 else wrong[index // 2 % 3] for index in spread(EXAMPLES, 20)]
    assert all("Base – no_stop" in article for article in articles)


def test_excerpt_holds_rows_that_the_gold_query_reads(root: Path) -> None:
    run = load(root)
    for case in run.cases:
        assert case.row_count == 9
        numbers = [(marked, cells[0]) for marked, cells in case.rows]
        assert numbers == [(False, "0"), (False, "1"), (False, "2"), (True, "7")]
        assert case.rows[3][1] == ("7", f"ann {case.index}-7", f"club {case.index}")


def test_scores_and_facts(root: Path) -> None:
    page = Page(render_page(load(root)))
    assert "Execution accuracy 0.0% → 51.2%" in page.text  # 22 of 43
    none = "0.0% 0 of 43 95% interval 0.0 to 8.2%"
    assert f"Execution accuracy {none} 51.2% 22 of 43 95% interval 36.8 to 65.4%" in page.text
    assert f"Valid SQL {none} 67.4% 29 of 43 95% interval" in page.text
    assert "Stopped at EOS 2.3% 1 of 43 95% interval 0.4 to 12.1% 83.7% 36 of 43" in page.text
    assert "+51.2 points (95% interval" in page.text
    assert "22 fixed, 0 broken, 0 right with both, 21 wrong with both; p < 0.001 by McNemar's exact test" in page.text
    assert "agree with them on every answer" in page.text
    assert re.search(r"Selected column 0\.0% 0\.0 to 8\.2% 67\.4%", page.text)
    assert re.search(r"Number of conditions Questions Base Adapter 2 43 0\.0% 0\.0 to 8\.2% 51\.2%", page.text)
    assert "Gold queries that return nothing 80 (8.0%) 80 (8.0%) 80 (8.0%)" in page.text
    assert "Aggregates none: 70%, COUNT: 30%" in page.text
    assert re.search(r"no_stop went on [\w ]+ 42 7 ", page.text)
    assert re.search(r"wrong_table asks another table 0 7 ", page.text)
    for fact in (
        "LoRA, rank 16 on q_proj, v_proj of the top 8 layers",
        "500 of batch 4, learning rate 0.002",
        "Training loss 0.213 at the end Validation loss 0.252 at the end, from 5.213 before training",
        "1.704M 0.02% of 7,241.732M",
        "1,912 tokens a second",
        "0.83 GB measured while training",
        "Base model demo Size 7,241.732M parameters, float32 Data demo, seed 1 Examples 1,000, 1,000, 1,000 train",
        "greedy at most 100 tokens, constraint: none",
    ):
        assert fact in page.text
    assert "Predicted" not in page.text
    assert "Published" not in page.text
    assert "Frozen layers" not in page.text
    assert "did not record its machine and versions" in page.text
    training = json.loads((root / "results/training.json").read_text())
    (root / "results/training.json").write_text(json.dumps(training | {"predicted_peak_memory_gb": 0.8151}))
    assert "Predicted 0.82 GB before the run; measured 2% more" in Page(render_page(load(root))).text


def test_machine_versions_and_durations(root: Path) -> None:
    path = root / "results/training.json"
    more = {"frozen_seconds": 7.25, "train_seconds": 147.0, "validation_seconds": 7500.4, "workers": 2}
    more |= {"predicted_peak_memory_gb": 0.834, "environment": [["Device", "<b>CPU"], ["mlx", "0.32.4"]]}
    path.write_text(json.dumps(TRAINING | more))
    text = Page(render_page(load(root))).text
    assert "Frozen layers 7.2 s Training steps 2 min 27 s Validation 2 h 05 min" in text
    assert "Machine and versions Device <b>CPU mlx 0.32.4" in text
    assert "Processes 2 in the last run of the stage" in text
    assert "Predicted 0.83 GB before the run; as measured" in text
    assert "did not record" not in text


@pytest.mark.parametrize(
    ("recorded", "shown"),
    [
        ({"published_iteration": 300, "best_valid_loss": 0.1712}, "iteration 300 of 500 validation loss 0.171"),
        ({"published_iteration": 500, "best_valid_loss": 0.1712}, "iteration 500 of 500 validation loss 0.252"),
        ({"published_iteration": 0, "best_valid_loss": 5.2134}, "iteration 0 of 500 untrained, validation loss 5.213"),
        ({"published_iteration": 300}, "iteration 300 of 500 Time and memory"),
    ],
    ids=["best", "last", "untrained", "no-loss"],
)
def test_the_published_iteration_is_shown(root: Path, recorded: dict[str, float], shown: str) -> None:
    (root / "results/training.json").write_text(json.dumps(TRAINING | recorded))
    assert f"Published {shown}" in Page(render_page(load(root))).text


def test_every_parameter_is_shown(root: Path) -> None:
    text = Page(render_page(load(root))).text.split("Parameters")[-1]
    for line in ("source demo checksum null", "targets q_proj, v_proj", "drop_degenerate false", "learning_rate 0.002"):
        assert line in text
    assert [text.index(f" {name} ") for name in SECTIONS] == sorted(text.index(f" {name} ") for name in SECTIONS)


def test_errors_are_grouped_by_what_is_wrong(root: Path) -> None:
    kinds = load(root).failures
    # 21 odd questions: a value, no end and another table in turns, seven of each; the base never ends but once.
    assert [(kind.name, kind.ran, dict(kind.counts)) for kind in kinds] == [
        ("no_stop", False, {"base": 42, "adapter": 7}),
        ("wrong_table", False, {"base": 0, "adapter": 7}),
        ("condition values", True, {"base": 0, "adapter": 7}),
        ("bad_syntax", False, {"base": 1, "adapter": 0}),
    ]
    assert [len(kind.examples) for kind in kinds] == [SHOWN, SHOWN, SHOWN, 1]
    value = kinds[2].examples[0]
    assert (value.index, value.gold_result, value.result) == (1, "ann 1-7", "ann 1-8")
    assert kinds[3].system == "base"
    page = Page(render_page(load(root)))
    assert [attributes["data-kind"] for tag, attributes in page.elements if tag == "details"] == [k.name for k in kinds]
    assert "wrong condition values 3 of 7, adapter" in page.text
    assert "bad_syntax the only one, base" in page.text


@pytest.mark.parametrize(
    ("sql", "name"),
    [
        ("SELECT COUNT Player <b> FROM 1-3-1 WHERE Club = 'Club 3' AND No. = 7", "aggregate"),
        ("SELECT Club FROM 1-3-1 WHERE Club = 'Club 3' AND No. = 7", "selected column"),
        ("SELECT Player <b> FROM 1-3-1 WHERE Club = 'Club 3'", "condition columns"),
        ("SELECT Player <b> FROM 1-3-1 WHERE Club = 'Club 3' AND No. > 7", "condition operators"),
        ("SELECT Player <b> FROM 1-3-1 WHERE Club = 'Club 3' AND No. = 5", "condition values"),
        ("SELECT Player <b> FROM 1-3-1 WHERE Club = 'Club 3' AND No. > 5", "several parts"),
        ("SELECT Club FROM 1-3-1 WHERE Club = 'Club 3'", "several parts"),
        ("", "empty"),
    ],
)
def test_the_kind_of_an_error(tmp_path: Path, sql: str, name: str) -> None:
    example, predictions = question(3), [Prediction(sql, True, 9)]
    build_database(tmp_path / "tables.db", [table(example, 3)])
    verdicts = judge([example], predictions, tmp_path / "tables.db")
    (kind,) = group_failures([example], {"adapter": predictions}, {"adapter": verdicts})
    assert kind.name == name
    assert not group_failures([example], {"adapter": predictions}, {"adapter": [replace(verdicts[0], execution=True)]})


def test_outcomes_to_filter_by(root: Path) -> None:
    page = Page(render_page(load(root)))
    radios = [attributes["id"] for tag, attributes in page.elements if tag == "input"]
    adapter = ["adapter-all", "adapter-right", "adapter-wrong", "adapter-no_stop", "adapter-wrong_table"]
    assert radios == [*adapter, "base-all", "base-no_stop"]
    assert "Adapter all 20 right 13 wrong 2 no_stop 3 wrong_table 2 Base all 20 no_stop 20" in page.text
    cases = [attributes for tag, attributes in page.elements if tag == "article"]
    assert [case["data-adapter"] for case in cases].count("wrong") == 2
    assert {case["data-base"] for case in cases} == {"no_stop"}


def test_disagreements_with_the_official_evaluator_are_explained(root: Path) -> None:
    scores = json.loads((root / "results/details.json").read_text())
    scores["adapter"] |= {"strict_execution_accuracy": 0.5349, "disagreements": {"row_order": 1, "number_form": 2}}
    (root / "results/details.json").write_text(json.dumps(scores))
    text = Page(render_page(load(root))).text
    assert "give 0.0% and 53.5% for execution accuracy (base and adapter), 0.0% and 51.2% for logical-form" in text
    assert "Adapter: 1 answer with the same rows in another order" in text
    assert "Adapter: 2 answers with the same number written in another way" in text


def test_every_disagreement_has_an_explanation() -> None:
    assert set(DISAGREEMENTS) == set(typing.get_args(Disagreement))


def test_a_reading_of_good_scores_is_possible_at_all(tmp_path: Path) -> None:
    (tmp_path / "score.json").write_text(SCORES)
    assert read_scores(tmp_path / "score.json", 1).systems["base"].intervals["valid_sql"] == (0.1, 0.4)


def test_equal_inputs_give_equal_bytes(root: Path) -> None:
    assert render_page(load(root)) == render_page(load(root))


def test_curve_takes_its_colours_from_the_page(root: Path) -> None:
    svg = draw_loss(load(root).loss)
    assert svg.startswith('<svg viewBox="')
    assert not re.search(r"#[0-9a-f]{6}\b(?!\")", svg)
    assert {"var(--curve-train)", "var(--curve-valid)", "var(--muted)", "var(--rule)"} <= set(
        re.findall(r"var\([^)]*\)", svg)
    )
    assert "validation loss from 5.213 to 0.252, over 500 iterations" in svg
    assert "log scale" in svg
    assert "<metadata" not in svg
    css = (Path(draw_loss.__code__.co_filename).parent / "report.css").read_text()
    assert all(css.count(f"{name}:") == 2 for name in re.findall(r"var\((--[\w-]+)\)", svg))  # light and dark


def test_curve_of_small_or_missing_losses() -> None:
    flat = draw_loss([LossPoint(0, None, 0.0), LossPoint(5, 2.0, None)])
    assert "log scale" not in flat
    assert "training loss from 2.000 to 2.000" in draw_loss([LossPoint(5, 2.0, None)])


def test_memory_chart(root: Path) -> None:
    points = load(root).loss
    assert "0.80 GB measured, 0.75 GB predicted" in draw_memory(points, 0.75)
    assert "predicted" not in draw_memory(points, None)
    assert draw_memory([LossPoint(0, None, 1.0)], 0.75) == ""
    (root / "results/loss.csv").write_text("iteration,train_loss,valid_loss\n0,,1.5\n")
    assert "Memory" not in Page(render_page(load(root))).text.replace("Time and memory", "").replace("Peak memory", "")


def test_charts_of_hostile_names_are_text() -> None:
    name = "$x^2$ <b>&\"'\\u\\1"
    svg = draw_groups("hostile", name, [Group(name, 3, {"base": (0.5, 0.2, 0.8), "adapter": (1.0, 0.4, 1.0)})], LABELS)
    page = Page(svg)
    assert name in page.text
    assert {tag for tag, _ in page.elements} <= {"svg", "g", "path", "text", "defs", "use", "clippath", "rect"}
    assert all(name.startswith("hostile-") for name in page.values("id"))
    assert page.values("aria-label") == [f"{name}. {name}: Base 50.0%, Adapter 100.0%"]


def test_every_outcome_has_a_meaning() -> None:
    names = {name for part in typing.get_args(Outcome) for name in typing.get_args(part) or [part]}
    assert set(OUTCOMES) == names


def test_visible() -> None:
    assert visible("SELECT é – 日本 'x'") == "SELECT é – 日本 'x'"
    assert visible("a\x00b\x1b[31m\r\n\x7f\xa0\u202e") == "a␀b␛[31m␍⏎\\x7f \\u202e"
    assert visible("a\n\tb", "\n") == "a\n␉b"


def test_percents_do_not_round_to_none_or_all(root: Path) -> None:
    path = root / "results/details.json"
    record = json.loads(path.read_text()) | {"examples": 15_878}
    record["base"]["execution_accuracy"] = 0.0001
    record["adapter"]["execution_accuracy"] = 0.9999
    path.write_text(json.dumps(record))
    scores = read_scores(path, 15_878)
    assert scores.percent("base", "execution_accuracy") == "<0.1%"
    assert scores.percent("adapter", "execution_accuracy") == ">99.9%"
    assert scores.count("adapter", "execution_accuracy") == "about 15,876"  # four decimals leave it open


def test_scores_of_another_split_are_refused(root: Path) -> None:
    with pytest.raises(
        SqloraError, match=r"details\.json: found scores of 43 .* the 42 test questions.* Run dvc repro"
    ):
        read_scores(root / "results/details.json", 42)


@pytest.mark.parametrize("read", [read_training, read_parts, read_loss, lambda path: read_scores(path, 1)])
def test_a_missing_file_is_named(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(SqloraError, match=r"absent: found no such file; .* Run dvc repro at the top"):
        read(tmp_path / "absent")


@pytest.mark.parametrize(
    ("read", "text", "found"),
    [
        (read_training, "{", "Expecting property name"),
        (read_training, "[]", "a JSON list"),
        (read_training, json.dumps(TRAINING | {"iterations": "500"}), "iterations '500'"),
        (read_training, json.dumps(TRAINING | {"iterations": True}), "iterations True"),
        (read_training, json.dumps(TRAINING | {"final_train_loss": float("nan")}), "final_train_loss nan"),
        (read_training, json.dumps({k: v for k, v in TRAINING.items() if k != "peak_memory_gb"}), "no key peak_memory"),
        (read_training, json.dumps(TRAINING | {"environment": {"mlx": "1"}}), "environment {'mlx': '1'}"),
        (read_training, json.dumps(TRAINING | {"environment": [["mlx"]]}), "environment [['mlx']]"),
        (read_training, json.dumps(TRAINING | {"train_seconds": "1"}), "train_seconds '1'"),
        (read_parts, '{"train": {"examples": 1, "tables": 1}}', "no key train.degenerate"),
        (read_parts, '{"train": {"examples": 1}, "valid": {}, "test": {}}', "no key train.tables"),
        (read_parts, json.dumps({"train": PART}), "no key valid"),
        (read_parts, json.dumps({"train": PART | {"tokens": {"mean": "x"}}}), "train.tokens.mean 'x'"),
        (read_breakdown, "", "rows for nothing"),
        (read_breakdown, "system,breakdown,group\nbase,aggregate,none\n", "'group': 'none'"),
        (lambda path: read_scores(path, 1), '{"examples": 1, "base": {}}', "no key base"),
        (lambda path: read_scores(path, 1), SCORES.replace("[0.1, 0.4]", "[0.1]"), "intervals.valid_sql [0.1]"),
        (lambda path: read_scores(path, 1), SCORES.replace('"fixed": 1', '"fixed": "1"'), "comparison.execution.fixed"),
        (read_loss, LOSS_HEADER + "\n", "no row"),
        (read_loss, LOSS_HEADER + "\n1,x,,,\n", "train_loss 'x'"),
        (read_loss, LOSS_HEADER + "\n1,nan,,,\n", "train_loss 'nan'"),
        (read_loss, LOSS_HEADER + "\n,1,,,\n", "no iteration"),
        (read_loss, "iteration,train_loss\n1,1\n", "no column valid_loss"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, read: Callable[[Path], object], text: str, found: str) -> None:
    path = tmp_path / "damaged"
    path.write_text(text)
    with pytest.raises(SqloraError, match=rf"damaged(:2)?: found .*{re.escape(found)}.*Delete the file"):
        read(path)


def test_losses_that_were_not_measured_are_none(root: Path) -> None:
    points = read_loss(root / "results/loss.csv")
    assert points == [
        LossPoint(0, None, 5.2134, 0.4),
        LossPoint(10, 4.5, None, 0.8),
        LossPoint(500, 0.2131, 0.2519, 0.8),
    ]
    (root / "results/loss.csv").write_text("iteration,train_loss,valid_loss\n0,,1.5\n")
    assert read_loss(root / "results/loss.csv") == [LossPoint(0, None, 1.5)]


def test_summary(root: Path) -> None:
    text = summarise_run(root)
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH == 100
    assert [line.split() for line in lines[2:6]] == [
        ["Execution", "accuracy", "0.0%", "(0)", "51.2%", "(22)"],
        ["Logical-form", "accuracy", "0.0%", "(0)", "51.2%", "(22)"],
        ["Valid", "SQL", "0.0%", "(0)", "67.4%", "(29)"],
        ["Stopped", "at", "EOS", "2.3%", "(1)", "83.7%", "(36)"],
    ]
    assert [line.split(":")[0] for line in lines if line.startswith("Question")] == [
        "Question 1",
        "Question 15",
        "Question 29",
    ]
    before = [line for line in lines if line.startswith("  before")]
    assert len(before) == 3
    assert all("no_stop" in line and line.endswith("…") and "␛" in line for line in before)
    gold = render_sql(question(14).sql, question(14))
    assert f"  after   right           {gold}" in lines
    assert f"  gold                    {gold}" in lines
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", text)


def test_summary_marks_line_ends_and_wraps_long_sql(root: Path) -> None:
    examples = [question(0)]
    long = "SELECT " + "Player " * 60
    write_run_again = {"base": [Prediction("a\n b\n", True, 3)], "adapter": [Prediction(long, True, 99)]}
    (root / "artifacts/dataset/tables.db").unlink()
    write_run(root, examples, write_run_again)
    lines = summarise_run(root).splitlines()
    assert "  before  bad_syntax      a⏎ b" in lines
    (start,) = [number for number, line in enumerate(lines) if line.startswith("  after")]
    assert lines[start + 2].endswith("…")
    assert lines[start + 3].startswith("  gold")
    assert max(map(len, lines)) <= WIDTH


def test_summary_shows_a_right_answer_if_there_is_one(root: Path) -> None:
    examples = [question(index) for index in range(30)]
    silent = [Prediction("", True, 0)] * 30
    adapter = [*silent[:25], answer(examples[26], 26), *silent[26:]]
    adapter[25], adapter[26] = silent[0], adapter[25]
    (root / "artifacts/dataset/tables.db").unlink()
    write_run(root, examples, {"base": silent, "adapter": adapter})
    text = summarise_run(root)
    assert re.findall(r"^Question (\d+)", text, re.M) == ["11", "21", "27"]
    assert text.count("  after   right") == 1
    assert "  before  empty           (nothing)" in text


@pytest.mark.parametrize(
    "name",
    [
        "results/details.json",
        "artifacts/dataset/test.jsonl",
        "artifacts/dataset/tables.db",
        "artifacts/predictions/base.jsonl",
        "artifacts/predictions/adapter.jsonl",
    ],
)
def test_summary_of_an_unfinished_run(root: Path, name: str) -> None:
    (root / name).unlink()
    with pytest.raises(SqloraError, match=rf"{re.escape(name)}: found no such file; .* Run dvc repro at the top"):
        summarise_run(root)
