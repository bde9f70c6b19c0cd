"""Draws the examples that a run trains, validates and is tested on."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlora.errors import SqloraError
from sqlora.params.split import SplitParams
from sqlora.split.order import spread_over_tables
from sqlora.sql.execute import Execution, build_database, execute, open_database
from sqlora.text import Example, write_examples
from sqlora.wikisql.layout import Question, Table, read_questions, read_tables

SPLITS = {"train": "train", "valid": "dev", "test": "test"}  # ours -> WikiSQL's part


@dataclass(frozen=True)
class Split:
    """examples: split name -> examples in the order drawn; tables: those that the examples ask about.

    dropped: degenerate questions of the test part that could not be drawn.
    """

    examples: dict[str, list[Example]]
    tables: list[Table]
    dropped: int = 0


def draw_split(wikisql: Path, params: SplitParams) -> Split:
    """Draw train, valid and test from WikiSQL's train, dev and test parts.

    Raises:
        SqloraError: for damaged data, a size larger than its part, or a table in two parts.
    """
    sizes = {"train": params.train_size, "valid": params.valid_size, "test": params.test_size}
    examples: dict[str, list[Example]] = {}
    used: list[Table] = []
    seen: dict[str, str] = {}
    dropped = 0
    for name, part in SPLITS.items():
        tables = read_tables(wikisql / f"{part}.tables.jsonl")
        questions = read_questions(wikisql / f"{part}.jsonl", tables)
        _require_new(wikisql / f"{part}.tables.jsonl", tables, seen, part)
        if name == "test" and params.drop_degenerate:
            kept = _without_degenerate(questions, tables)
            dropped = len(questions) - len(kept)
            questions = kept
        size = _size(wikisql / f"{part}.jsonl", name, sizes[name], len(questions), dropped)
        order = spread_over_tables(questions, params.seed) if params.sampling == "tables" else range(len(questions))
        drawn = [questions[index] for index in order[:size]]
        examples[name] = [_example(question, tables[question.table_id]) for question in drawn]
        used += [tables[table_id] for table_id in dict.fromkeys(question.table_id for question in drawn)]
    return Split(examples, used, dropped)


def gold_results(examples: Sequence[Example], db: Path) -> list[Execution]:
    """What the gold query of each example gives on the database of their tables."""
    with open_database(db) as runner:
        return [execute(example.sql, example, runner) for example in examples]


def is_degenerate(result: Execution) -> bool:
    """Whether a gold query returns no row, nothing but NULL, or fails.

    Such a question cannot tell a right query from many wrong ones, which return nothing either.
    """
    return result.failure is not None or all(value is None for value in result.rows)


def write_split(folder: Path, split: Split) -> None:
    """Write train.jsonl, valid.jsonl, test.jsonl, tables.db and test.db into an empty folder.

    test.db holds the test split's tables only, so that another train split is no reason to generate again.
    """
    for name, examples in split.examples.items():
        write_examples(folder / f"{name}.jsonl", examples)
    build_database(folder / "tables.db", split.tables)
    tested = {example.table_id for example in split.examples["test"]}
    build_database(folder / "test.db", [table for table in split.tables if table.id in tested])


def _require_new(path: Path, tables: Mapping[str, Table], seen: dict[str, str], part: str) -> None:
    for table_id in tables:
        if table_id in seen:
            raise SqloraError(
                path,
                found=f"table {table_id}, which {seen[table_id]}.tables.jsonl has as well",
                expected="each table in one part only, so that no test question is about a table seen in training",
                next_step=f"Take the table and its questions out of {part} or out of {seen[table_id]}.",
            )
        seen[table_id] = part


def _size(path: Path, name: str, wanted: int | None, there: int, dropped: int) -> int:
    size = there if wanted is None else wanted
    if size > there or size == 0:
        left = f" that are not degenerate ({dropped} are dropped)" if dropped else ""
        raise SqloraError(
            path,
            found=f"{there} questions{left}",
            expected=f"at least the {size} that split.{name}_size asks for" if size else "at least one",
            next_step=f"Lower split.{name}_size in params.yaml, or let data.source name more questions."
            if size
            else "Let data.source name questions for each of train, dev and test.",
        )
    return size


def _without_degenerate(questions: Sequence[Question], tables: Mapping[str, Table]) -> list[Question]:
    with tempfile.TemporaryDirectory() as scratch:
        db = Path(scratch) / "tables.db"
        build_database(db, tables.values())
        results = gold_results([_example(question, tables[question.table_id]) for question in questions], db)
    return [question for question, result in zip(questions, results, strict=True) if not is_degenerate(result)]


def _example(question: Question, table: Table) -> Example:
    return Example(table.id, question.question, table.header, table.types, question.sql)
