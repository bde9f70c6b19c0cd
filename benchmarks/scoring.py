"""Time and memory of scoring 15,878 predictions, the size of WikiSQL's test part, for each of two systems.

    python benchmarks/scoring.py ../shared/data/wikisql-rebuilt.tar.bz2

The questions are the first 15,878 of the tarball's train part. The adapter's predictions are the gold queries, every
fifth one spoilt; the base model's are babble, every second one a query of another question.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sqlora.fetch.archive import extract
from sqlora.jsonl import write_jsonl
from sqlora.sql.execute import build_database
from sqlora.text import Example, write_examples
from sqlora.wikisql.layout import read_questions, read_tables

QUESTIONS = 15_878
ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a tarball in WikiSQL's layout")
    source = parser.parse_args().source
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(source, folder)
        command = [sys.executable, str(ROOT / "stages/score.py"), "--dataset", "dataset", "--out", "out"]
        for name in ("base", "adapter"):
            command += [f"--{name}", f"{name}.jsonl"]
        for name in ("scores.json", "breakdown.csv", "errors.csv"):
            command += [f"--{name.partition('.')[0]}", name]
        started = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True)
        seconds = time.perf_counter() - started
        # The largest of the children: the scorer. Its own worker is smaller and is added to be fair.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        scores = json.loads((folder / "scores.json").read_text())
        for name in ("base", "adapter"):
            print(f"{name}: execution accuracy {scores[name]['execution_accuracy']:.1%}, {scores[name]['outcomes']}")
        print(f"{2 * QUESTIONS:,} predictions scored in {seconds:.1f} s; {peak / 1e6:.0f} MB at most in one process")


def prepare(source: Path, folder: Path) -> None:
    """Write params.yaml, dataset/ and the two files of predictions."""
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    extract(source, ("train.jsonl", "train.tables.jsonl"), folder)
    tables = read_tables(folder / "train.tables.jsonl")
    questions = read_questions(folder / "train.jsonl", tables)[:QUESTIONS]
    examples = [
        Example(table.id, question.question, table.header, table.types, question.sql)
        for question in questions
        for table in [tables[question.table_id]]
    ]
    (folder / "dataset").mkdir()
    write_examples(folder / "dataset/test.jsonl", examples)
    build_database(folder / "dataset/tables.db", {e.table_id: tables[e.table_id] for e in examples}.values())
    completions = {
        "adapter": [
            example.completion if index % 5 else example.completion.replace("=", ">") + " AND"
            for index, example in enumerate(examples)
        ],
        "base": [
            "The table shows it. " * 20 if index % 2 else examples[index - 7].completion
            for index in range(len(examples))
        ],
    }
    for name, texts in completions.items():
        write_jsonl(
            folder / f"{name}.jsonl",
            ({"index": index, "completion": text, "stopped": True, "tokens": 30} for index, text in enumerate(texts)),
        )


if __name__ == "__main__":
    main()
