"""Builds WikiSQL's official layout from a folder of CSV files and a file of questions about them."""

from __future__ import annotations

import errno
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlora.errors import SqloraError
from sqlora.import_csv.parts import Shares, check_shares, share_out
from sqlora.import_csv.questions import Asked, read_question_file
from sqlora.import_csv.review import review
from sqlora.import_csv.tables import read_csv_folder
from sqlora.jsonl import write_jsonl
from sqlora.publish import publish_folder
from sqlora.wikisql.layout import PARTS, Question, Table, read_questions, read_tables

FILES = tuple(f"{part}{ending}" for part in PARTS for ending in (".jsonl", ".tables.jsonl"))

_SHOWN = 20


class InputProblemsError(SqloraError):
    """Everything that is wrong with the input, at once; nothing was written."""

    def __init__(self, problems: Sequence[SqloraError]) -> None:
        """Keep a line for each of the first 20 problems, and one for the number of the rest."""
        self.lines = [f"{p.where}: found {p.found}; expected {p.expected}" for p in problems[:_SHOWN]]
        if len(problems) > _SHOWN:
            self.lines.append(f"and {len(problems) - _SHOWN} more")
        self.headline = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        super().__init__(
            "the tables and questions",
            found=f"{self.headline}: " + "; ".join(self.lines),
            expected="none",
            next_step="Nothing was written. Mend them and run the same command again.",
        )


@dataclass(frozen=True)
class ImportedTable:
    """One table that was written, and how many questions ask about it."""

    table: Table
    part: str
    questions: int


@dataclass(frozen=True)
class Summary:
    """What was written.

    tables: in the order of their files' names; replaced: whether `out` held an earlier import; warnings: sentences
    about what may be a mistake.
    """

    out: Path
    replaced: bool
    tables: tuple[ImportedTable, ...]
    warnings: tuple[str, ...]

    def questions(self, part: str) -> int:
        """The number of questions of a part."""
        return sum(table.questions for table in self.tables if table.part == part)


def import_csv(
    tables: Path,
    questions: Path,
    out: Path,
    *,
    seed: int,
    shares: Shares,
    text: Collection[str] = (),
    delimiter: str | None = None,
) -> Summary:
    """Write {train,dev,test}.{jsonl,tables.jsonl} into the folder `out`, which is replaced if it is an earlier import.

    Equal input gives equal bytes. Tables that no question asks about are left out.

    Args:
        tables: a folder of NAME.csv files, each one table; the first row names the columns.
        questions: one JSON object a line: `table`, `question`, `sql` and, if it is to choose, `part`.
        seed: decides which tables go to which part.
        shares: of train, dev and test, in questions; any three positive numbers.
        text: names of columns that are text even if every cell is a number.
        delimiter: between cells, or None to find it out for each file.

    Raises:
        InputProblemsError: naming every bad file and line together.
        SqloraError: for other mistakes: paths, shares, or too few tables. Nothing is written then.
    """
    replaced = _check_out(out)
    check_shares(shares)
    folder = read_csv_folder(tables, text=text, delimiter=delimiter)
    asked = read_question_file(questions, folder)
    pins, contradictions = _pins(asked.asked)
    problems = [*folder.problems, *sorted([*asked.problems, *contradictions], key=_line)]
    if problems:
        raise InputProblemsError(problems)
    counts = Counter(one.question.table_id for one in asked.asked)
    wanted = [table for table in folder.tables.values() if table.table.id in counts]
    parts = share_out(questions, {table.table.id: counts[table.table.id] for table in wanted}, pins, shares, seed)
    imported = tuple(
        ImportedTable(table.table, part, counts[table.table.id]) for table, part in zip(wanted, parts, strict=True)
    )
    warnings = review(folder, asked, [table.table for table in wanted])
    try:
        with publish_folder(out.absolute()) as target:
            _write(target, imported, [one.question for one in asked.asked])
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise  # the command line has a message of its own for a full disk
        raise _unwritable(out, error) from None
    return Summary(out, replaced, imported, tuple(warnings))


def _check_out(out: Path) -> bool:
    """Whether there is an earlier import; anything else in its place must not be deleted."""
    try:
        if not os.path.lexists(out):
            return False
        files = [path.name for path in out.iterdir()] if out.is_dir() else []
    except OSError as error:
        raise _unwritable(out, error) from None
    others = sorted(set(files) - set(FILES))
    if others or out.is_symlink() or not out.is_dir():
        raise SqloraError(
            out.absolute(),
            found=f"something else already: {', '.join(others[:5]) or 'a file or a link'}{', …' * (len(others) > 5)}",
            expected="no such folder, an empty one, or an earlier import",
            next_step="Name another folder with --out.",
        )
    return bool(files)


def _unwritable(out: Path, error: OSError) -> SqloraError:
    return SqloraError(
        out.absolute(),
        found=error.strerror or str(error),
        expected="a folder that can be written",
        next_step="Name another folder with --out.",
    )


def _pins(asked: Sequence[Asked]) -> tuple[dict[str, str], list[SqloraError]]:
    first: dict[str, Asked] = {}
    contradictions = []
    for one in asked:
        pinned = first.setdefault(one.question.table_id, one) if one.part else one
        if pinned.part != one.part:
            contradictions.append(
                SqloraError(
                    one.where,
                    found=f"part {one.part} for table {one.question.table_id}",
                    expected=f"{pinned.part}, as in {pinned.where}: a table is in one part only",
                    next_step="Mend that line and run the same command again.",
                )
            )
    return {table: one.part for table, one in first.items() if one.part}, contradictions


def _line(problem: SqloraError) -> int:
    return int(problem.where.rpartition(":")[2])


def _write(folder: Path, imported: Sequence[ImportedTable], questions: Sequence[Question]) -> None:
    of_table: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        of_table[question.table_id].append(question)
    for part in PARTS:
        tables = [one.table for one in imported if one.part == part]
        asked = [question for table in tables for question in of_table[table.id]]
        write_jsonl(
            folder / f"{part}.tables.jsonl",
            (
                {"id": table.id, "header": list(table.header), "types": list(table.types), "rows": list(table.rows)}
                for table in tables
            ),
        )
        write_jsonl(
            folder / f"{part}.jsonl",
            ({"table_id": q.table_id, "question": q.question, "sql": q.sql.to_json()} for q in asked),
        )
        # The pipeline reads these files with the same functions: what it would refuse must not be published.
        read = read_tables(folder / f"{part}.tables.jsonl")
        assert list(read.values()) == tables
        assert read_questions(folder / f"{part}.jsonl", read) == asked
