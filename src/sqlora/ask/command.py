"""`python -m sqlora ask`: a question, the SQL, and what it returns."""

from __future__ import annotations

import argparse
import json
import sys

from sqlora.ask.answer import Asker, Reply
from sqlora.ask.source import Source, open_csv, open_sqlite
from sqlora.errors import SqloraError


def run(arguments: argparse.Namespace) -> int:
    """Answer; the status is 1 if a query could not be executed."""
    if (arguments.question is None) != arguments.interactive:
        raise SqloraError(
            "ask",
            found="a question and --interactive" if arguments.interactive else "no question",
            expected="one of the two",
            next_step='Run `python -m sqlora ask "question" --csv FILE.csv`, or the same with --interactive instead.',
        )
    opened = open_csv(arguments.csv) if arguments.csv else open_sqlite(arguments.sqlite, arguments.table)
    with opened as source:
        asker = Asker(arguments.model, None if arguments.base else arguments.adapter)
        if not arguments.interactive:
            return _answer(asker, arguments.question, source, arguments)
        while question := _next_question():
            try:
                _answer(asker, question, source, arguments)
            except SqloraError as error:  # of this question; the next one may do
                print(f"error: {error}", file=sys.stderr)
        return 0


def show(reply: Reply, most: int) -> str:
    """A reply for a terminal."""
    if reply.sql is None:
        return f"no SQL: the model wrote {reply.written!r}"
    lines = [reply.sql]
    if reply.failure:
        lines.append(f"failed: {reply.failure}")
    elif not reply.rows:
        lines.append("(no rows)")
    lines += ["  " + " | ".join("" if cell is None else str(cell) for cell in row) for row in reply.rows[:most]]
    if len(reply.rows) > most:
        lines.append(f"  … and {len(reply.rows) - most:,} more")
    return "\n".join(lines)


def as_json(reply: Reply, most: int) -> str:
    """A reply for scripts, in one line."""
    rows = [[cell.hex() if isinstance(cell, bytes) else cell for cell in row] for row in reply.rows[:most]]
    record = {
        "question": reply.question,
        "written": reply.written,
        "sql": reply.sql,
        "columns": list(reply.columns),
        "rows": rows,
        "row_count": len(reply.rows),
        "failure": reply.failure,
    }
    return json.dumps(record, ensure_ascii=False)


def _answer(asker: Asker, question: str, source: Source, arguments: argparse.Namespace) -> int:
    reply = asker.ask(question, source)
    print((as_json if arguments.json else show)(reply, arguments.rows), flush=True)
    return 1 if reply.failure else 0


def _next_question() -> str:
    if sys.stdin.isatty():
        print("? ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()
