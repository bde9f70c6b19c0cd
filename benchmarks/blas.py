"""Training steps of the demo with the fast BLAS and with MLX's own, one after the other: prints the ratio.

    python benchmarks/blas.py [--steps 8]

Needs artifacts/model and artifacts/dataset (make demo). Linux without a GPU only: elsewhere nothing differs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

MEASURE = """
import sys, time
from pathlib import Path
from sqlora.mlx import BLAS, mx
from mlx_lm.utils import load_model
from sqlora.params.all import check_params
from sqlora.text import read_examples
from sqlora.tokenizer import Tokenizer
from sqlora.train.batching import batching_of
from sqlora.train.feed import transfer
from sqlora.train.inputs import lengths_of, token_fetcher
from sqlora.train.loss import make_batch
from sqlora.train.lora import add_lora
from sqlora.train.step import Stepper
from sqlora.train.upper import Upper

params = check_params(Path("params.yaml"))
model = Upper(load_model(Path("artifacts/model"))[0], 0)
model.freeze()
add_lora(model, params["lora"], 1)
tokenizer = Tokenizer(Path("artifacts/model"))
rows = read_examples(Path("artifacts/dataset/train.jsonl"))
examples = [tokenizer.encode_example(row.prompt, row.completion) for row in rows]
batching = batching_of(examples, lengths_of(examples, batch_size=params["train"].batch_size), params["train"], 1)
stepper = Stepper(model, params["lora"], params["train"])

print(BLAS.name)
for number in range(int(sys.argv[1]) + 1):
    planned, *_ = batching.share(number, 0)
    batch = make_batch(examples, planned, token_fetcher(examples), "completion")
    started = time.perf_counter()
    mx.eval(*stepper.step(transfer([batch])), stepper.adapter())
    if number:  # the first one warms up
        print(time.perf_counter() - started)
"""


def main() -> None:
    """Measure twice and print seconds a step and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    steps = parser.parse_args().steps
    medians = []
    for label, variable in (("fast", ""), ("MLX's own", "mlx")):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(steps)],
            cwd=ROOT,
            env=os.environ | {"SQLORA_BLAS": variable},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"error: the measurement failed; run `make demo` first.\n{done.stderr.splitlines()[-1]}")
        name, *seconds = done.stdout.splitlines()
        medians.append(statistics.median(map(float, seconds)))
        print(f"{label:<10} {medians[-1]:8.3f} s a step (median of {steps}; {name})")
    print(f"{'ratio':<10} {medians[1] / medians[0]:8.1f}")


if __name__ == "__main__":
    main()
