"""Which examples are drawn, and that the draw stays the same."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from sqlora.errors import SqloraError
from sqlora.params.split import SplitParams
from sqlora.split import Split, describe, draw_split, spread_over_tables, write_split
from sqlora.text import read_examples
from sqlora.wikisql.layout import LogicalForm, Question

PARAMS = SplitParams(train_size=12, valid_size=4, test_size=6, sampling="tables", seed=1)
PINNED = [7, 9, 2, 0, 3, 1, 6, 4, 5, 8]
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
    questions = [Question(f"t{n % 4}", f"q{n}", LogicalForm(0, 0, ())) for n in range(10)]
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


def test_description(wikisql: Path) -> None:
    everything = replace(PARAMS, train_size=50, sampling="first")
    described = describe(draw_split(wikisql, everything))
    assert list(described) == ["train", "valid", "test"]
    assert described["train"] == {
        "examples": 50,
        "tables": 10,
        "aggregates": {"none": 10, "MAX": 10, "MIN": 10, "COUNT": 10, "SUM": 10, "AVG": 0},
        "conditions": {"0": 10, "1": 40},
        "values_in_question": 1.0,
    }
    text = (wikisql / "train.jsonl").read_text().replace("Who wears 1?", "Who wears one?")
    (wikisql / "train.jsonl").write_text(text)
    assert describe(draw_split(wikisql, everything))["train"]["values_in_question"] == 0.75
