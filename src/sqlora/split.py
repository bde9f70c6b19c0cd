"""Draws the examples that a run trains, validates and is tested on."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlora.errors import SqloraError
from sqlora.params.split import SplitParams
from sqlora.sql.execute import build_database
from sqlora.text import Example, render_value, write_examples
from sqlora.wikisql.layout import AGGREGATES, Question, Table, read_questions, read_tables

SPLITS = {"train": "train", "valid": "dev", "test": "test"}  # ours -> WikiSQL's part


@dataclass(frozen=True)
class Split:
    """examples: split name -> examples in the order drawn; tables: those that the examples ask about."""

    examples: dict[str, list[Example]]
    tables: list[Table]


def draw_split(wikisql: Path, params: SplitParams) -> Split:
    """Draw train, valid and test from WikiSQL's train, dev and test parts.

    Raises:
        SqloraError: for damaged data, a size larger than its part, or a table in two parts.
    """
    sizes = {"train": params.train_size, "valid": params.valid_size, "test": params.test_size}
    examples: dict[str, list[Example]] = {}
    used: list[Table] = []
    seen: dict[str, str] = {}
    for name, part in SPLITS.items():
        tables = read_tables(wikisql / f"{part}.tables.jsonl")
        questions = read_questions(wikisql / f"{part}.jsonl", tables)
        for table_id in tables:
            if table_id in seen:
                raise SqloraError(
                    wikisql / f"{part}.tables.jsonl",
                    found=f"table {table_id}, which {seen[table_id]}.tables.jsonl has as well",
                    expected="each table in one part only, so that no test question is about a table seen in training",
                    next_step=f"Take the table and its questions out of {part} or out of {seen[table_id]}.",
                )
            seen[table_id] = part
        if sizes[name] > len(questions):
            raise SqloraError(
                wikisql / f"{part}.jsonl",
                found=f"{len(questions)} questions",
                expected=f"at least the {sizes[name]} that split.{name}_size asks for",
                next_step=f"Lower split.{name}_size in params.yaml, or let data.source name more questions.",
            )
        order = spread_over_tables(questions, params.seed) if params.sampling == "tables" else range(len(questions))
        drawn = [questions[index] for index in order[: sizes[name]]]
        examples[name] = [_example(question, tables[question.table_id]) for question in drawn]
        used += [tables[table_id] for table_id in dict.fromkeys(question.table_id for question in drawn)]
    return Split(examples, used)


def spread_over_tables(questions: Sequence[Question], seed: int) -> Sequence[int]:
    """An order of all questions in which the first n ask about as many tables as n questions can.

    Tables stand in a random order, and so do the questions within each; then every table gives its first question,
    every table its second, and so on. The first 1,000 are therefore contained in the first 10,000. Order comes from
    hashes, not from a random stream: it is the same in every Python version, and adding a table moves no other.

    Returns:
        Indices into `questions`.
    """
    of_table: dict[str, list[tuple[bytes, int]]] = defaultdict(list)
    for index, question in enumerate(questions):
        of_table[question.table_id].append((_key(seed, question.table_id, question.question), index))
    ranked = [
        (rank, _key(seed, table_id), index)
        for table_id, keyed in of_table.items()
        for rank, (_, index) in enumerate(sorted(keyed))
    ]
    return [index for _, _, index in sorted(ranked)]


def write_split(folder: Path, split: Split) -> None:
    """Write train.jsonl, valid.jsonl, test.jsonl and tables.db into an empty folder."""
    for name, examples in split.examples.items():
        write_examples(folder / f"{name}.jsonl", examples)
    build_database(folder / "tables.db", split.tables)


def describe(split: Split) -> dict[str, Any]:
    """What results/dataset.json holds: per split its size, tables, aggregates, conditions and shares of values."""
    return {name: _describe(examples) for name, examples in split.examples.items()}


def _describe(examples: Sequence[Example]) -> dict[str, Any]:
    values = [(value, example) for example in examples for _, _, value in example.sql.conds]
    stated = sum(render_value(value).lower() in example.question.lower() for value, example in values)
    aggregates = Counter(AGGREGATES[example.sql.agg] or "none" for example in examples)
    conditions = Counter(len(example.sql.conds) for example in examples)
    return {
        "examples": len(examples),
        "tables": len({example.table_id for example in examples}),
        "aggregates": {name or "none": aggregates[name or "none"] for name in AGGREGATES},
        "conditions": {str(count): conditions[count] for count in sorted(conditions)},
        "values_in_question": round(stated / len(values), 4) if values else None,
    }


def _example(question: Question, table: Table) -> Example:
    return Example(table.id, question.question, table.header, table.types, question.sql)


def _key(seed: int, *names: str) -> bytes:
    return hashlib.sha256("\0".join((str(seed), *names)).encode("utf-8")).digest()
