"""`python -m sqlora report REV_A REV_B`: two revisions side by side, as a page."""

from __future__ import annotations

from pathlib import Path

from sqlora.publish import publish_file
from sqlora.report.side_by_side.gather import read_pair
from sqlora.report.side_by_side.page import render_pair


def run(root: Path, first: str, second: str, out: Path) -> int:
    """Write the page `out` about two revisions of the repository `root`; returns the exit status."""
    page = render_pair(read_pair(root, first, second))
    with publish_file(out) as file:
        file.write_text(page, encoding="utf-8", newline="\n")
    print(f"{first} beside {second}: {out}")
    return 0
