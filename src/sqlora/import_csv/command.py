"""`python -m sqlora import-csv`: prints what was imported and what to do next, or everything that is wrong."""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from pathlib import Path

from sqlora.errors import SqloraError
from sqlora.import_csv.files import DELIMITERS
from sqlora.import_csv.importer import InputProblemsError, Summary, import_csv
from sqlora.wikisql.layout import PARTS

_WIDTH = 110
_TABLES = 10


def run(arguments: argparse.Namespace) -> int:
    """Run the command with the arguments that `sqlora.__main__` defines; returns the exit status."""
    try:
        summary = import_csv(
            arguments.tables,
            arguments.questions,
            arguments.out,
            seed=arguments.seed,
            shares=_shares(arguments.shares),
            text=arguments.text,
            delimiter=DELIMITERS.get(arguments.delimiter),
        )
    except InputProblemsError as error:
        # As one paragraph, twenty of them could not be read.
        print(f"error: found {error.headline}; {error.next_step[0].lower()}{error.next_step[1:]}", file=sys.stderr)
        print("\n".join(_item(line) for line in error.lines), file=sys.stderr)
        return 1
    print(describe(summary))
    return 0


def describe(summary: Summary) -> str:
    """What was written and what to do next, for a terminal."""
    questions = {part: summary.questions(part) for part in PARTS}
    lines = [f"{_count(sum(questions.values()), 'question')} about {_count(len(summary.tables), 'table')}"]
    for part, number in questions.items():
        tables = sum(table.part == part for table in summary.tables)
        lines.append(f"  {part:5}  {_count(number, 'question')} about {_count(tables, 'table')}")
    lines.append("Columns and their types")
    for one in summary.tables[:_TABLES]:
        columns = ", ".join(f"{name} {kind}" for name, kind in zip(one.table.header, one.table.types, strict=True))
        shown = textwrap.shorten(columns, 300, placeholder=" …")
        lines.append(_item(f"{one.table.id} ({one.part}, {_count(len(one.table.rows), 'row')}): {shown}"))
    if len(summary.tables) > _TABLES:
        lines.append(f"  and {len(summary.tables) - _TABLES} more tables")
    if summary.warnings:
        lines += ["Warnings", *map(_item, summary.warnings)]
    lines += [
        "Now set in params.yaml",
        "  data:",
        f"    source: {_yaml(summary.out)}",
        "    checksum: null",
        "  split:",
    ]
    lines += [
        f"    {name}_size: {questions[part]}" for name, part in zip(("train", "valid", "test"), PARTS, strict=True)
    ]
    lines += ["and run", "  python -m sqlora check"]
    if summary.replaced:
        lines.append("  dvc repro -f fetch_data    # DVC does not see that the folder's files are new")
    return "\n".join([*lines, "  dvc repro"])


def _shares(text: str) -> tuple[float, float, float]:
    try:
        train, dev, test = map(float, text.split(","))
    except ValueError:
        raise SqloraError(
            "--shares",
            found=repr(text),
            expected=f"three numbers above 0, for {', '.join(PARTS)}",
            next_step="Write for example --shares 80,10,10.",
        ) from None
    return train, dev, test


def _item(text: str) -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _yaml(path: Path) -> str:
    # data.source: demo is the generated data, not a folder of that name.
    text = "./demo" if str(path) == "demo" else str(path)
    return text if re.fullmatch(r"[\w./][\w./-]*", text) else json.dumps(text)
