"""`python -m sqlora ask`: a question, the SQL, and what it returns."""

from __future__ import annotations

import argparse
import json
import math
import sys

from sqlora.ask.answer import MAX_TOKENS, Asker, Reply
from sqlora.ask.source import Source, open_csv, open_sqlite
from sqlora.errors import SqloraError
from sqlora.sql.sandbox import Cell


def run(arguments: argparse.Namespace) -> int:
    """Answer; the status is 1 if a query could not be executed, 130 if questions were ended by Ctrl-C.

    Raises:
        SqloraError: whatever keeps a question from being answered; with --json it is printed as well.
    """
    try:
        return _run(arguments)
    except SqloraError as error:
        if arguments.json:
            _print_error(arguments.question, error)
        raise


def _run(arguments: argparse.Namespace) -> int:
    if (arguments.question is None) != arguments.interactive:
        raise SqloraError(
            "ask",
            found="a question and --interactive" if arguments.interactive else "no question",
            expected="one of the two",
            next_step='Run `python -m sqlora ask "question" --csv FILE.csv`, or the same with --interactive instead.',
        )
    if arguments.csv and arguments.table:
        raise SqloraError(
            "ask",
            found=f"--table {arguments.table} and a CSV file",
            expected="a file that is one table",
            next_step="Leave out --table, or name a database with --sqlite.",
        )
    opened = open_csv(arguments.csv) if arguments.csv else open_sqlite(arguments.sqlite, arguments.table)
    with opened as source:
        asker = Asker(arguments.model, None if arguments.base else arguments.adapter)
        if not arguments.interactive:
            return _answer(asker, arguments.question, source, arguments)
        try:
            while question := _next_question():
                try:
                    _answer(asker, question, source, arguments)
                except SqloraError as error:  # of this question; the next one may do
                    if arguments.json:
                        _print_error(question, error)
                    print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print(file=sys.stderr)
            return 130
        return 0


def show(reply: Reply, most: int) -> str:
    """A reply for a terminal."""
    if reply.sql is None:
        return f"no answer: the model's did not end within {MAX_TOKENS} tokens; it began {reply.written!r}"
    lines = [reply.sql]
    if reply.failure:
        lines.append(f"failed: {reply.failure}")
    elif not reply.rows:
        lines.append("(no rows)")
    lines += ["  " + " | ".join(map(_shown, row)) for row in reply.rows[:most]]
    if len(reply.rows) > most:
        lines.append(f"  … and {len(reply.rows) - most:,} more")
    return "\n".join(lines)


def as_json(reply: Reply, most: int) -> str:
    """A reply for scripts, in one line."""
    rows = [[_json_cell(cell) for cell in row] for row in reply.rows[:most]]
    record = {
        "question": reply.question,
        "written": reply.written,
        "sql": reply.sql,
        "columns": list(reply.columns),
        "rows": rows,
        "row_count": len(reply.rows),
        "failure": reply.failure,
        "error": None,
    }
    return json.dumps(record, ensure_ascii=False, allow_nan=False)


def _shown(cell: Cell) -> str:
    """A cell in a line of a terminal, which must neither break the line nor command the terminal."""
    text = "" if cell is None else cell.hex() if isinstance(cell, bytes) else str(cell)
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def _json_cell(cell: Cell) -> str | int | float | None:
    if isinstance(cell, bytes):
        return cell.hex()
    return str(cell) if isinstance(cell, float) and not math.isfinite(cell) else cell


def _print_error(question: str | None, error: SqloraError) -> None:
    print(json.dumps({"question": question, "error": str(error)}), flush=True)


def _answer(asker: Asker, question: str, source: Source, arguments: argparse.Namespace) -> int:
    reply = asker.ask(question, source)
    print((as_json if arguments.json else show)(reply, arguments.rows), flush=True)
    return 1 if reply.failure else 0


def _next_question() -> str:
    if sys.stdin.isatty():
        print("? ", end="", file=sys.stderr, flush=True)
    try:
        return sys.stdin.readline().strip()
    except UnicodeDecodeError:
        raise SqloraError(
            "question",
            found="bytes that are no UTF-8",
            expected="a text in UTF-8",
            next_step="Check the terminal's encoding.",
        ) from None
