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
import numpy as np
from mlx_lm.utils import load_model
from sqlora.params.all import check_params
from sqlora.text import read_examples
from sqlora.tokenizer import Tokenizer
from sqlora.train.buckets import Planned, batch_indices, bucket_of, choose_lengths
from sqlora.train.feed import transfer
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
lengths = [len(e.tokens) - 1 for e in examples]
buckets = choose_lengths(lengths, batch_size=params["train"].batch_size)
stepper = Stepper(model, params["lora"], params["train"])

def fetch(chosen, starts, tokens):
    batch = np.zeros(tokens, dtype=np.int32)
    for start, index in zip(starts, chosen):
        batch[start : start + lengths[index]] = examples[index].tokens[:-1]
    return batch

print(BLAS.name)
for number in range(int(sys.argv[1]) + 1):
    chosen = batch_indices(number, lengths, buckets, params["train"].batch_size, 1)
    length = bucket_of(max(lengths[index] for index in chosen), buckets)
    batch = make_batch(examples, Planned(chosen, length, len(chosen), 0), fetch, "completion")
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
