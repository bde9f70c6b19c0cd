"""Finds what can be imported but is often a mistake."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from sqlora.import_csv.questions import Asked, QuestionFile
from sqlora.import_csv.tables import CsvFolder, CsvTable, read_number
from sqlora.sql.execute import build_database, execute, open_database
from sqlora.wikisql.layout import AGGREGATES, OPERATORS, Table


def review(folder: CsvFolder, asked: QuestionFile, tables: Sequence[Table]) -> list[str]:
    """Sentences about everything in the input that can be imported but is often a mistake.

    Args:
        tables: those with questions.
    """
    used = {table.id for table in tables}
    all_tables: list[CsvTable] = list(folder.tables.values())
    warnings = [note for table in all_tables if table.table.id in used for note in table.notes]
    unused = [table.name for table in all_tables if table.table.id not in used]
    if unused:
        warnings.append(f"no question asks about {_some(unused)}: left out")
    if asked.ignored:
        warnings.append(f"keys without a meaning here, ignored: {_some(asked.ignored)}")
    first: dict[tuple[str, str], Asked] = {}
    differing = [
        f"{one.where} and {same.where}"
        for one in asked.asked
        for same in [first.setdefault((one.question.table_id, one.question.question), one)]
        if same.question != one.question
    ]
    if differing:
        warnings.append(f"the same question with two different queries: {_some(differing)}")
    by_id = {table.id: table for table in tables}
    lexical = [
        one.where
        for one in asked.asked
        if any(
            by_id[one.question.table_id].types[column] == "text"
            and OPERATORS[operator] != "="
            and read_number(str(value)) is not None
            for column, operator, value in one.question.sql.conds
        )
    ]
    if lexical:
        warnings.append(f"> or < between a number and a text column, in which 9 comes after 10: {_some(lexical)}")
    empty, failing = _fruitless(asked.asked, by_id)
    if empty:
        warnings.append(f"{len(empty)} of {len(asked.asked)} queries find nothing in their table: {_some(empty)}")
    if failing:
        warnings.append(f"{len(failing)} of {len(asked.asked)} queries cannot be executed: {_some(failing)}")
    return warnings


def _fruitless(asked: Sequence[Asked], tables: Mapping[str, Table]) -> tuple[list[str], list[str]]:
    """Where the questions stand whose queries find nothing, and those whose queries fail."""
    empty, failing = [], []
    with tempfile.TemporaryDirectory() as scratch:
        database = Path(scratch) / "tables.db"
        build_database(database, tables.values())
        with open_database(database) as runner:
            for one in asked:
                form = one.question.sql
                execution = execute(form, tables[one.question.table_id], runner, strict=True)
                # A count of no rows is a row that holds 0, a sum of none one that holds nothing.
                nothing = (None, 0) if AGGREGATES[form.agg] == "COUNT" else (None,)
                if execution.failure:
                    failing.append(one.where)
                elif all(value in nothing for value in execution.rows):
                    empty.append(one.where)
    return empty, failing


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + f" and {len(names) - 5} more" * (len(names) > 5)
