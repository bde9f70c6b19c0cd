"""Which examples are drawn, and that the draw stays the same."""

from __future__ import annotations

import json
import random
import sqlite3
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sqlora.errors import SqloraError
from sqlora.params.split import SplitParams
from sqlora.split.describe import describe
from sqlora.split.draw import Split, draw_split, write_split
from sqlora.split.order import spread_over_tables
from sqlora.text import read_examples
from sqlora.tokenizer import Tokenizer
from sqlora.wikisql.layout import LogicalForm, Question

PARAMS = SplitParams(train_size=12, valid_size=4, test_size=6, sampling="tables", drop_degenerate=False, seed=1)
PINNED = [7, 5, 6, 0, 3, 9, 2, 4, 1, 8]
TABLES = {"train": 10, "dev": 4, "test": 5}


def write_part(folder: Path, part: str, tables: int, *, per_table: int = 5, first: int = 0) -> None:
    records, questions = [], []
    for number in range(first, first + tables):
        table_id = f"1-{part}-{number}"
        rows = [[row, f"Player {row}"] for row in range(4)]
        records.append({"id": table_id, "header": ["No.", "Player"], "types": ["real", "text"], "rows": rows})
        for row in range(per_table):
            sql = {"sel": 1, "agg": row % 6, "conds": [[0, 0, row]] if row else []}
            questions.append({"table_id": table_id, "question": f"Who wears {row}?", "sql": sql})
    for name, lines in ((f"{part}.tables.jsonl", records), (f"{part}.jsonl", questions)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def wikisql(tmp_path: Path) -> Path:
    folder = tmp_path / "wikisql"
    folder.mkdir()
    for part, tables in TABLES.items():
        write_part(folder, part, tables)
    return folder


def drawn(split: Split, name: str) -> list[tuple[str, str]]:
    return [(example.table_id, example.question) for example in split.examples[name]]


def test_sizes_and_parts(wikisql: Path) -> None:
    split = draw_split(wikisql, PARAMS)
    assert {name: len(examples) for name, examples in split.examples.items()} == {"train": 12, "valid": 4, "test": 6}
    for name, part in (("train", "train"), ("valid", "dev"), ("test", "test")):
        assert {example.table_id.split("-")[1] for example in split.examples[name]} == {part}
        assert len(set(drawn(split, name))) == len(drawn(split, name))


def test_examples_cover_as_many_tables_as_they_can(wikisql: Path) -> None:
    for size in (1, 7, 10, 11, 50):
        split = draw_split(wikisql, replace(PARAMS, train_size=size))
        assert len({example.table_id for example in split.examples["train"]}) == min(size, 10)


def test_a_smaller_split_is_contained_in_a_larger_one(wikisql: Path) -> None:
    sets = [set(drawn(draw_split(wikisql, replace(PARAMS, train_size=size)), "train")) for size in (3, 12, 30, 50)]
    assert all(small < large for small, large in pairwise(sets))


def test_the_seed_decides(wikisql: Path) -> None:
    splits = [drawn(draw_split(wikisql, replace(PARAMS, seed=seed)), "train") for seed in (1, 1, 2)]
    assert splits[0] == splits[1]
    assert set(splits[0]) != set(splits[2])


def test_the_draw_is_the_same_everywhere() -> None:
    # Whoever changes this order changes every score that was ever measured on a sample.
    questions = [Question(f"t{n % 4}", f"q{n}", LogicalForm(0, n % 3 // 2, ())) for n in range(10)]
    assert list(spread_over_tables(questions, 1)) == PINNED
    assert sorted(PINNED) == list(range(10))


def test_questions_of_one_wording_are_all_drawn() -> None:
    questions = [Question("t", "same", LogicalForm(0, 0, ()))] * 3
    assert sorted(spread_over_tables(questions, 1)) == [0, 1, 2]


def test_first_takes_the_first_rows(wikisql: Path) -> None:
    split = draw_split(wikisql, replace(PARAMS, sampling="first", train_size=7))
    expected = [("1-train-0", f"Who wears {row}?") for row in range(5)]
    assert drawn(split, "train") == [*expected, ("1-train-1", "Who wears 0?"), ("1-train-1", "Who wears 1?")]


@pytest.mark.parametrize("sampling", ["tables", "first"])
def test_asking_for_more_than_there_is(wikisql: Path, sampling: str) -> None:
    draw_split(wikisql, replace(PARAMS, sampling=sampling, valid_size=20))
    with pytest.raises(SqloraError) as caught:
        draw_split(wikisql, replace(PARAMS, sampling=sampling, valid_size=21))
    assert caught.value.where.endswith("dev.jsonl")
    assert "20 questions" in caught.value.found
    assert "21 that split.valid_size" in caught.value.expected


def test_a_table_in_two_parts(wikisql: Path) -> None:
    lines = (wikisql / "train.tables.jsonl").read_text().splitlines(keepends=True)
    with open(wikisql / "test.tables.jsonl", "a") as handle:
        handle.write(lines[3])
    with pytest.raises(SqloraError, match=r"table 1-train-3, which train\.tables\.jsonl has as well"):
        draw_split(wikisql, PARAMS)


def test_what_is_written(wikisql: Path, tmp_path: Path) -> None:
    split = draw_split(wikisql, PARAMS)
    folder = tmp_path / "dataset"
    folder.mkdir()
    write_split(folder, split)
    assert {name: read_examples(folder / f"{name}.jsonl") for name in ("train", "valid", "test")} == split.examples
    names = {name for (name,) in sqlite3.connect(folder / "tables.db").execute("SELECT name FROM sqlite_master")}
    used = {example.table_id for examples in split.examples.values() for example in examples}
    assert names == {"table_" + table_id.replace("-", "_") for table_id in used}
    assert len(names) == 10 + 4 + 5


def describe_all(wikisql: Path, tmp_path: Path, model: Path, params: SplitParams) -> dict[str, Any]:
    split = draw_split(wikisql, params)
    folder = tmp_path / f"dataset-{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    write_split(folder, split)
    return describe(split, folder / "tables.db", Tokenizer(model))


def test_description(wikisql: Path, tmp_path: Path, model_folder: Path) -> None:
    everything = replace(PARAMS, train_size=50, sampling="first")
    described = describe_all(wikisql, tmp_path, model_folder, everything)
    assert list(described) == ["train", "valid", "test"]
    tokens = described["train"].pop("tokens")
    completion = described["train"].pop("completion_tokens")
    assert described["train"] == {
        "examples": 50,
        "tables": 10,
        "aggregates": {"none": 10, "MAX": 10, "MIN": 10, "COUNT": 10, "SUM": 10, "AVG": 0},
        "conditions": {"0": 10, "1": 40},
        "degenerate": 10,  # nobody wears 4
        "duplicates": 0,
        "values_in_question": 1.0,
        "questions_without_value": 0,
        "unreadable": 0,
    }
    # All parts ask the same questions under the same header.
    assert described["test"]["questions_in_train"] == 6
    assert (described["test"]["tables_in_train"], described["valid"]["tables_in_train"]) == (0, 0)
    encoded = [
        Tokenizer(model_folder).encode_example(example.prompt, example.completion)
        for example in draw_split(wikisql, everything).examples["train"]
    ]
    lengths = sorted(len(example.tokens) for example in encoded)
    assert tokens == {
        "mean": round(sum(lengths) / 50, 1),
        "median": lengths[24],
        "p95": lengths[47],
        "max": lengths[-1],
    }
    assert completion["max"] == max(len(example.tokens) - example.prompt_tokens for example in encoded)
    text = (wikisql / "train.jsonl").read_text().replace("Who wears 1?", "Who wears one?")
    (wikisql / "train.jsonl").write_text(text.replace("Who wears 3?", "Who wears 2?"))
    changed = describe_all(wikisql, tmp_path, model_folder, everything)["train"]
    assert changed["values_in_question"] == 0.5
    assert changed["questions_without_value"] == 20
    assert changed["duplicates"] == 10


def test_degenerate_questions_can_be_kept_out_of_the_test_split(
    wikisql: Path, tmp_path: Path, model_folder: Path
) -> None:
    whole = replace(PARAMS, train_size=None, valid_size=None, test_size=None)
    kept = describe_all(wikisql, tmp_path, model_folder, whole)
    assert {name: part["examples"] for name, part in kept.items()} == {"train": 50, "valid": 20, "test": 25}
    assert {name: part["degenerate"] for name, part in kept.items()} == {"train": 10, "valid": 4, "test": 5}
    dropped = describe_all(wikisql, tmp_path, model_folder, replace(whole, drop_degenerate=True))
    assert {name: part["examples"] for name, part in dropped.items()} == {"train": 50, "valid": 20, "test": 20}
    assert dropped["test"]["degenerate"] == 0
    assert (dropped["test"]["degenerate_dropped"], kept["test"]["degenerate_dropped"]) == (5, 0)
    with pytest.raises(SqloraError, match=r"20 questions that are not degenerate \(5 are dropped\).*at least the 21"):
        draw_split(wikisql, replace(whole, drop_degenerate=True, test_size=21))


def test_a_gold_query_that_fails(wikisql: Path, tmp_path: Path, model_folder: Path) -> None:
    for part in ("train", "test"):
        lines = (wikisql / f"{part}.jsonl").read_text().splitlines(keepends=True)
        lines[1] = lines[1].replace("[[0, 0, 1]]", '[[0, 0, "seven"]]')
        (wikisql / f"{part}.jsonl").write_text("".join(lines))
    whole = replace(PARAMS, train_size=None, test_size=None)
    with pytest.raises(SqloraError, match=r"table 1-test-0: found a gold query that fails \(bad_value\)"):
        describe_all(wikisql, tmp_path, model_folder, whole)
    described = describe_all(wikisql, tmp_path, model_folder, replace(whole, drop_degenerate=True))
    assert described["train"]["degenerate"] == 11
    assert described["test"]["examples"] == 19


def test_every_beginning_of_the_order_has_the_strata_of_the_whole() -> None:
    rng = random.Random(1)
    shares = {(0, 1): 600, (3, 1): 150, (0, 2): 200, (5, 0): 50}
    strata = rng.choices(list(shares), list(shares.values()), k=6000)
    questions = [
        Question(f"t{rng.randrange(2000)}", f"q{number}", LogicalForm(0, agg, ((0, 0, 1),) * conds))
        for number, (agg, conds) in enumerate(strata)
    ]
    order = spread_over_tables(questions, 1)
    for size in (100, 500, 1000):
        drawn = Counter(strata[index] for index in order[:size])
        for stratum in shares:
            # A random draw of 1,000 misses by 1 to 2 points.
            assert abs(drawn[stratum] / size - strata.count(stratum) / 6000) < 0.012, (size, stratum)
        assert len({questions[index].table_id for index in order[:size]}) == size


def test_gold_queries_that_the_parser_cannot_read_are_counted(
    wikisql: Path, tmp_path: Path, model_folder: Path
) -> None:
    text = (wikisql / "train.jsonl").read_text().replace("[[0, 0, 3]]", '[[0, 0, "3 km"]]')
    (wikisql / "train.jsonl").write_text(text)
    described = describe_all(wikisql, tmp_path, model_folder, replace(PARAMS, train_size=None))
    assert described["train"]["unreadable"] == 10
    assert described["test"]["unreadable"] == 0


def test_a_part_without_questions(wikisql: Path) -> None:
    (wikisql / "dev.jsonl").write_text("")
    with pytest.raises(SqloraError, match=r"dev\.jsonl: found 0 questions; expected at least one\. Let data\.source"):
        draw_split(wikisql, replace(PARAMS, valid_size=None))
