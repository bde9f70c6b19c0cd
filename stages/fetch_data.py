"""Fetch the questions and tables in WikiSQL's layout, or generate the demo's, and check every line."""

from __future__ import annotations

import tempfile
from pathlib import Path

from sqlora.demo_data.generator import write_demo_archive
from sqlora.errors import SqloraError
from sqlora.fetch.archive import extract
from sqlora.fetch.failure import shown
from sqlora.fetch.source import obtain
from sqlora.params.data import DataParams
from sqlora.publish import publish_folder
from sqlora.stage import run_stage
from sqlora.wikisql.layout import PARTS, read_questions, read_tables

# WikiSQL with its databases takes about 0.1 GB.
MAX_BYTES = 4 * 10**9
FILES = tuple(f"{part}{ending}" for part in PARTS for ending in (".jsonl", ".tables.jsonl"))


def main(out: Path, data: DataParams) -> None:
    """Write {train,dev,test}.{jsonl,tables.jsonl}."""
    with tempfile.TemporaryDirectory() as scratch:

        def demo() -> Path:
            path = Path(scratch) / "demo-data.tar.bz2"
            write_demo_archive(path, data.demo_seed, train_tables=data.demo_tables)
            return path

        found = obtain("data", data.source, checksum=data.checksum, demo=demo)
        with publish_folder(out) as folder:
            extract(found.path, FILES, folder, max_bytes=MAX_BYTES)
            try:
                for part in PARTS:
                    read_questions(folder / f"{part}.jsonl", read_tables(folder / f"{part}.tables.jsonl"))
            except SqloraError as error:
                raise SqloraError(
                    # The folder goes away with the error; what the user can look into is the source.
                    error.where.replace(str(folder), shown(found.source)),
                    found=error.found,
                    expected=error.expected,
                    next_step="Correct that in the source, or set data.source in params.yaml to another.",
                ) from None


if __name__ == "__main__":
    run_stage(main)
