"""results/loss.csv, written while training goes on."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TextIO

from sqlora.train.report import Report


@contextmanager
def curve(path: Path, *, wanted: bool) -> Iterator[Callable[[Report], None]]:
    """What writes each report as a row at once; the file is emptied by the first one, when nothing else can train.

    Args:
        wanted: false for ranks that have nothing to write.
    """
    with ExitStack() as stack:
        handles: list[TextIO] = []

        def report(row: Report) -> None:
            if not wanted:
                return
            if not handles:
                path.parent.mkdir(parents=True, exist_ok=True)
                handles.append(stack.enter_context(open(path, "w", newline="")))
            writer = csv.DictWriter(handles[0], [field.name for field in fields(Report)], lineterminator="\n")
            if not handles[0].tell():
                writer.writeheader()
            writer.writerow(row.row())
            handles[0].flush()

        yield report
