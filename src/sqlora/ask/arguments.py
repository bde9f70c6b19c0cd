"""The options of `python -m sqlora ask`, apart from what they need, so that other commands do not load MLX."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("question", nargs="?", help="left out with --interactive")
    table = parser.add_mutually_exclusive_group(required=True)
    table.add_argument("--csv", type=Path, metavar="FILE.csv", help="the table, with a header")
    table.add_argument("--sqlite", type=Path, metavar="FILE.db", help="the database that holds the table")
    parser.add_argument("--table", metavar="NAME", help="of the database, if it has more than one")
    parser.add_argument("--model", type=Path, default=Path("artifacts/model"), metavar="FOLDER")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--adapter", type=Path, default=Path("artifacts/adapter"), metavar="FOLDER")
    which.add_argument("--base", action="store_true", help="without the adapter")
    parser.add_argument("--rows", type=_count, default=20, metavar="N", help="to show at most (20)")
    parser.add_argument("--interactive", action="store_true", help="read questions, a line each, until an empty one")
    parser.add_argument("--json", action="store_true", help="print each answer, or error, as a line of JSON")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 0 or more")
    return int(text)
