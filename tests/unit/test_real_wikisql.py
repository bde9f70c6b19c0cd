"""The rebuilt WikiSQL questions, where ../shared has them: real table ids, questions and logical forms."""

from __future__ import annotations

import sqlite3
import tarfile
from pathlib import Path

import pytest

from sqlora.score.judge import official_form
from sqlora.sql.execute import build_database, execute, open_database, table_name
from sqlora.sql.parse import parse_sql
from sqlora.text import render_sql
from sqlora.wikisql.layout import PARTS, Question, Table, read_questions, read_tables

TARBALL = Path(__file__).parents[2] / "../shared/data/wikisql-rebuilt.tar.bz2"

pytestmark = pytest.mark.skipif(not TARBALL.is_file(), reason=f"needs {TARBALL.name} in ../shared/data")

Part = tuple[dict[str, Table], list[Question]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wikisql")
    wanted = {f"{part}{end}" for part in PARTS for end in (".jsonl", ".tables.jsonl")} | {"test.db"}
    with tarfile.open(TARBALL) as archive:
        for member in archive:
            name = Path(member.name).name
            content = archive.extractfile(member) if name in wanted else None
            if content is not None:
                (folder / name).write_bytes(content.read())
    return folder


@pytest.fixture(scope="module")
def parts(folder: Path) -> dict[str, Part]:
    read: dict[str, Part] = {}
    for part in PARTS:
        tables = read_tables(folder / f"{part}.tables.jsonl")
        read[part] = (tables, read_questions(folder / f"{part}.jsonl", tables))
    return read


def test_every_question_is_read_back(parts: dict[str, Part]) -> None:
    lost = []
    count = 0
    for tables, questions in parts.values():
        for question in questions:
            table = tables[question.table_id]
            sql = render_sql(question.sql, table)
            parsed = parse_sql(" " + sql, table.id, table.header, table.types)
            # Equal, and equal to the letter, as the official evaluator compares.
            if parsed.form != question.sql or not official_form(parsed.form, parsed.literals, question.sql):
                lost.append(sql)
            count += 1
    print(f"{count - len(lost):,} of {count:,} questions are read back: {1 - len(lost) / count:.3%}")
    assert count > 60_000
    assert lost == []  # 66,592 of 66,592 when this was written; the issue asks for 99.9%


def test_our_database_holds_what_the_one_beside_it_holds(folder: Path, parts: dict[str, Part], tmp_path: Path) -> None:
    tables, questions = parts["test"]
    build_database(tmp_path / "ours.db", tables.values())
    ours, theirs = sqlite3.connect(tmp_path / "ours.db"), sqlite3.connect(folder / "test.db")
    for table_id in tables:
        query = f'SELECT * FROM "{table_name(table_id)}"'
        assert ours.execute(query).fetchall() == theirs.execute(query).fetchall()
    with open_database(tmp_path / "ours.db") as runner:
        results = [execute(question.sql, tables[question.table_id], runner) for question in questions]
    assert [result for result in results if result.failure] == []
    # Rows were synthesised so that questions have answers; only an engine that compares wrongly finds few.
    assert sum(any(value is not None for value in result.rows) for result in results) > 0.99 * len(results)


def test_whole_numbers_with_a_fraction_stand_so_in_their_questions(parts: dict[str, Part]) -> None:
    # Why the text says 243.0 and not 243.
    stated = [
        str(value) in question.question
        for _, questions in parts.values()
        for question in questions
        for _, _, value in question.sql.conds
        if isinstance(value, float) and value.is_integer()
    ]
    print(f"{sum(stated)} of {len(stated)} stand in their question as they are")
    assert len(stated) > 100
    assert sum(stated) > 0.9 * len(stated)
