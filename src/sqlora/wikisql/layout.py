"""Reads WikiSQL's official layout: PART.tables.jsonl and PART.jsonl for the parts train, dev and test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlora.errors import SqloraError
from sqlora.jsonl import read_jsonl
from sqlora.wikisql.form import (
    AGGREGATES,
    OPERATORS,
    Condition,
    LogicalForm,
    Value,
    read_columns,
    read_form,
    read_texts,
)

__all__ = [
    "AGGREGATES",
    "OPERATORS",
    "PARTS",
    "Cell",
    "Condition",
    "LogicalForm",
    "Question",
    "Table",
    "Value",
    "read_questions",
    "read_tables",
]

PARTS = ("train", "dev", "test")
Cell = str | int | float | None

_MEND = "Mend that line, or delete the folder and run dvc repro to fetch the data again."
_CELL_TYPES = {str, int, float, type(None)}


@dataclass(frozen=True, slots=True)
class Table:
    """One table; rows[i][j] is the cell of row i and column j, types[j] is `text` or `real`."""

    id: str
    header: tuple[str, ...]
    types: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one table; the text is kept as it stands, blanks at its end included."""

    table_id: str
    question: str
    sql: LogicalForm


def read_tables(path: Path) -> dict[str, Table]:
    """Read PART.tables.jsonl.

    Returns:
        Table id -> table, in the order of the file.

    Raises:
        SqloraError: naming file and line of a malformed line, an id that stands twice, or a ragged row.
    """
    tables: dict[str, Table] = {}
    known: dict[Cell, Cell] = {}  # cells repeat (years, countries): sharing them halves the memory
    for where, record in read_jsonl(path, _MEND):
        (table_id,) = read_texts(where, record, ["id"], _MEND)
        header, types = read_columns(where, record, _MEND)
        rows = record.get("rows")
        if not isinstance(rows, list):
            raise SqloraError(where, found=f"rows {rows!r:.80}", expected="a list of rows", next_step=_MEND)
        for number, row in enumerate(rows, 1):
            if not isinstance(row, list) or len(row) != len(header) or not _CELL_TYPES.issuperset(map(type, row)):
                raise SqloraError(
                    where,
                    found=f"row {number}: {row!r:.80}",
                    expected=f"a list of {len(header)} cells, texts or numbers",
                    next_step=_MEND,
                )
        if table_id in tables:
            raise SqloraError(where, found=f"a second table {table_id}", expected="each table id once", next_step=_MEND)
        shared = tuple(tuple(known.setdefault(c, c) if type(c) is str else c for c in row) for row in rows)
        tables[table_id] = Table(table_id, header, types, shared)
    return tables


def read_questions(path: Path, tables: Mapping[str, Table]) -> list[Question]:
    """Read PART.jsonl, in the order of the file.

    Raises:
        SqloraError: naming file and line of a malformed line, a question whose table is missing, or an index
            outside its table's header.
    """
    questions: list[Question] = []
    for where, record in read_jsonl(path, _MEND):
        table_id, question = read_texts(where, record, ["table_id", "question"], _MEND)
        table = tables.get(table_id)
        if table is None:
            raise SqloraError(
                where,
                found=f"a question about table {table_id}, which is missing",
                expected=f"one of the {len(tables)} tables of {path.with_suffix('.tables.jsonl').name}",
                next_step=_MEND,
            )
        questions.append(Question(table.id, question, read_form(where, record.get("sql"), len(table.header), _MEND)))
    return questions
