"""Writes answers to WikiSQL's dev part, half of them spoilt, for the official evaluator, and prints our own figures.

    python benchmarks/official.py ../shared/data/wikisql-rebuilt.tar.bz2 FOLDER

Then, in a checkout of salesforce/WikiSQL set up as docs/guides/scoring.md says:

    python evaluate.py FOLDER/questions.jsonl FOLDER/tables.db FOLDER/answers.jsonl
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from sqlora.fetch.archive import extract
from sqlora.score.judge import judge
from sqlora.score.official import write_predictions, write_questions
from sqlora.score.predictions import Prediction
from sqlora.sql.execute import build_database
from sqlora.text import Example, render_sql
from sqlora.wikisql.form import Condition, LogicalForm
from sqlora.wikisql.layout import Cell, read_questions, read_tables

Rows = tuple[tuple[Cell, ...], ...]


def main() -> None:
    """Write questions.jsonl, tables.db and answers.jsonl, and print our two official accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a tarball in WikiSQL's layout")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    folder, rng = arguments.folder, random.Random(5)
    folder.mkdir(parents=True, exist_ok=True)
    extract(arguments.source, ("dev.jsonl", "dev.tables.jsonl"), folder)
    tables = read_tables(folder / "dev.tables.jsonl")
    examples, predictions = [], []
    for question in read_questions(folder / "dev.jsonl", tables):
        table = tables[question.table_id]
        examples.append(Example(table.id, question.question, table.header, table.types, question.sql))
        predictions.append(Prediction(spoil(examples[-1], table.rows, rng), rng.random() < 0.98, 5))
    (folder / "tables.db").unlink(missing_ok=True)
    build_database(folder / "tables.db", tables.values())
    verdicts = judge(examples, predictions, folder / "tables.db")
    write_questions(folder / "questions.jsonl", examples)
    write_predictions(folder / "answers.jsonl", verdicts)
    for name in ("execution", "logical_form"):
        print(f"{name}: {sum(getattr(verdict, name) for verdict in verdicts) / len(verdicts)}")


def spoil(example: Example, rows: Rows, rng: random.Random) -> str:
    """The gold query, or another one near it."""
    form, chance = example.sql, rng.random()
    conds: list[Condition] = list(form.conds)
    sel, agg = form.sel, form.agg
    if 0.5 <= chance < 0.6:
        conds.reverse()
    elif 0.6 <= chance < 0.7 and conds:
        conds[0] = (conds[0][0], rng.randrange(3), conds[0][2])
    elif 0.7 <= chance < 0.8 and conds and rows:
        value = rng.choice(rows)[conds[0][0]]
        if value not in (None, ""):
            conds[0] = (conds[0][0], conds[0][1], value)
    elif 0.8 <= chance < 0.85 and conds:
        conds.append(rng.choice(conds))
    elif 0.85 <= chance < 0.9 and conds and rows:
        value = rng.choice(rows)[conds[0][0]]
        if value is not None:
            conds.append((conds[0][0], rng.randrange(3), value))
    elif 0.9 <= chance < 0.95:
        sel = rng.randrange(len(example.header))
    elif chance >= 0.95:
        agg = rng.randrange(6)
    text = " " + render_sql(LogicalForm(sel, agg, tuple(conds)), example)
    if rng.random() < 0.1:
        text = text.replace("'", '"')
    return text.upper() if rng.random() < 0.1 else text


if __name__ == "__main__":
    main()
