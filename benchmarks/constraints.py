"""What constraints and execution guidance do to accuracy: questions of WikiSQL's dev part, a model and its adapter.

    python benchmarks/constraints.py --wikisql FOLDER --model FOLDER [--adapter FOLDER] [--settings none,schema,none@4]

A setting is what generate.constrain takes, with @K for generate.execution_guided. Every table of the dev part is in the
database that guidance and scoring execute on. Prints a row of a table for each setting.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from sqlora.mlx import mx

from sqlora.generate.choose import Counts
from sqlora.generate.forward import make_forward
from sqlora.generate.run import generate
from sqlora.model import add_adapter, load_base
from sqlora.params.generate import GenerateParams
from sqlora.params.split import SplitParams
from sqlora.score.judge import judge
from sqlora.score.predictions import Prediction
from sqlora.score.statistics import wilson
from sqlora.split.draw import draw_split, write_split
from sqlora.text import read_examples
from sqlora.tokenizer import Tokenizer

SETTINGS = "none,schema,schema+question,none@4,schema@4,schema+question@4"


def main() -> None:
    """Decode and score in every setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wikisql", type=Path, required=True, help="folder in the official layout")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--settings", default=SETTINGS)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()
    model, _ = load_base(arguments.model)
    if arguments.adapter:
        add_adapter(model, arguments.adapter)
    mx.eval(model.parameters())
    tokenizer, forward = Tokenizer(arguments.model), make_forward(model)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "dataset"
        folder.mkdir()
        params = SplitParams(1, arguments.questions, 1, "tables", False, 1)
        write_split(folder, draw_split(arguments.wikisql, params))
        questions, database = read_examples(folder / "valid.jsonl"), folder / "tables.db"
        print("| setting | execution accuracy | 95% interval | logical form | valid SQL | no stop | seconds |")
        print("|---|---|---|---|---|---|---|")
        for setting in arguments.settings.split(","):
            constrain, _, candidates = setting.partition("@")
            params_ = GenerateParams(arguments.batch_size, 100, constrain, int(candidates or 1), 1, None, "auto")
            counts, started = Counts(), time.perf_counter()
            done = generate(forward, tokenizer, questions, params_, database=database, counts=counts, label=setting)
            seconds = time.perf_counter() - started
            predictions = [Prediction(c.completion, c.stopped, c.tokens, c.closed) for c in done]
            verdicts = judge(questions, predictions, database)
            total = len(verdicts)
            right = sum(verdict.execution for verdict in verdicts)
            low, high = wilson(right, total)
            form = sum(verdict.logical_form for verdict in verdicts) / total
            valid = sum(verdict.outcome == "ok" for verdict in verdicts) / total
            unstopped = sum(not completion.stopped for completion in done)
            print(
                f"| {setting} | {right / total:.1%} | {low:.1%} to {high:.1%} | {form:.1%} | {valid:.1%} "
                f"| {unstopped} | {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
