"""Predicted beside measured peak memory of training runs, each in a process of its own.

    python benchmarks/memory.py [--settings 4x8,4x4,…] [--model DIR] [--tokens tokens.json]
    python benchmarks/memory.py --shape mistral --model DIR --quantize --tokens tokens.json

A setting is BATCHxLAYERS and flags behind it: +check (gradient checkpointing), +quant (a 4-bit copy of the model, which
--quantize makes), +all (loss over all tokens), +whole (train.states_gb 0, so that all layers are in memory), +wave (the
training examples are validation examples as well, so that the frozen pass has a whole wave), +drop (dropout), +dora
(lora.adapter).

A run has few steps, over examples spread evenly over all lengths: the longest ones are among them. Measured is what
sqlora reports as peak_memory_gb: what MLX held on a GPU, the whole process on a CPU. --free leaves MLX's memory limit
alone, to show what the engine would take without it, and the speed of both.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from training import ROOT, make_model, write_tokens

CPU = "4x8,2x4,1x2,4x8+check,8x8+all,4x4+wave,16x8,40x4"
MISTRAL = (
    "4x16,2x8,1x4,8x16,4x32,4x16+check,8x16+check,4x16+quant,1x4+quant,4x32+quant+check,4x16+all,4x8+whole,16x16,32x16"
)
FLAGS = {"check", "quant", "all", "whole", "wave", "drop", "dora"}


def main() -> None:
    """Run every setting and print a line for each, and how many are within 10%."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", help=f"{CPU}, or with --shape {MISTRAL}")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--model", type=Path, default=ROOT / "artifacts/model")
    parser.add_argument("--tokens", type=Path, help="JSON of encoded examples, made from artifacts/dataset by default")
    parser.add_argument("--shape", choices=["mistral"], help="make a random model of that shape if there is none")
    parser.add_argument("--quantize", action="store_true", help="make the 4-bit copy DIR-4bit if there is none")
    parser.add_argument("--free", action="store_true", help="without MLX's memory limit")
    parser.add_argument("--tight", action="store_true", help="let MLX issue nothing ahead: measured is the live memory")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run_one(arguments.one, arguments)))
        return
    if arguments.shape and not arguments.model.exists():
        make_model(arguments.model)
    quantized = quantized_folder(arguments.model)
    if arguments.quantize and not quantized.exists():
        # In a process of its own: a child's peak is never below what its parent holds when it starts.
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import memory; memory.quantize()"
        subprocess.run([sys.executable, "-c", code, str(arguments.model), str(quantized)], check=True)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        tokens = arguments.tokens
        if not tokens:
            tokens = Path(scratch) / "tokens.json"
            write_tokens(arguments.model, tokens)
        print(f"{'setting':<18}{'predicted':>10}{'measured':>10}{'ratio':>7}{'ms/step':>9}  largest phase", flush=True)
        for setting in (arguments.settings or (MISTRAL if arguments.shape else CPU)).split(","):
            row = start(setting, tokens.resolve(), Path(scratch), arguments)
            if row:
                rows.append(row)
                print(
                    f"{setting:<18}{row['predicted']:>7.3f} GB{row['measured']:>7.3f} GB{ratio(row):>7.3f}"
                    f"{row['step_ms']:>9.0f}  {row['largest']} (MLX: live {row['live']:.3f}, held {row['held']:.3f})",
                    flush=True,
                )
    near = sum(abs(ratio(row) - 1) <= 0.1 for row in rows)
    print(f"{near} of {len(rows)} predictions are within 10% of the measured peak")


def ratio(row: dict[str, Any]) -> float:
    """Predicted over measured."""
    return float(row["predicted"] / row["measured"])


def quantized_folder(model: Path) -> Path:
    """Where a model's 4-bit copy lies."""
    return model.with_name(model.name + "-4bit")


def start(setting: str, tokens: Path, scratch: Path, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Run one setting in a process and folder of its own."""
    model = quantized_folder(arguments.model) if "+quant" in setting else arguments.model
    command = [sys.executable, str(Path(__file__).resolve()), "--one", setting, "--tokens", str(tokens)]
    command += ["--model", str(model.resolve()), "--steps", str(arguments.steps)] + ["--free"] * arguments.free
    command += ["--tight"] * arguments.tight
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(f"{setting}: failed with {done.returncode}", flush=True)
        return None
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def run_one(setting: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Predict, train a few steps, and compare."""
    from sqlora.mlx import mx

    from train_params import train_params

    from sqlora.memory import peak_memory
    from sqlora.params.lora import LoraParams
    from sqlora.plan.check import expect
    from sqlora.runtime import cut_graphs
    from sqlora.tokenizer import Encoded
    from sqlora.train.data import read_config
    from sqlora.train.run import train_adapter

    size, *flags = setting.split("+")
    assert set(flags) <= FLAGS, f"unknown flags in {setting}"
    batch, layers = map(int, size.split("x"))
    cut_graphs(batch)  # as the stage does
    data = json.loads(arguments.tokens.read_text())
    train, valid = ([Encoded(tuple(ids), prompt) for ids, prompt in data[name]] for name in ("train", "valid"))
    if "wave" in flags:
        valid = [*valid, *train]
    train = spread(train, batch * arguments.steps)
    lora = LoraParams(
        "dora" if "dora" in flags else "lora", layers, 8, 20.0, 0.1 if "drop" in flags else 0.0, ("q_proj", "v_proj")
    )
    params = train_params(
        batch_size=batch,
        iterations=arguments.steps,
        loss="all" if "all" in flags else "completion",
        gradient_checkpointing="check" in flags,
        validate_every=10**6,
        checkpoint_every=10**6,
        keep="best",
        states_gb=0.0 if "whole" in flags else 20.0,
    )
    free = mx.set_memory_limit(0)
    mx.set_memory_limit(free)
    prediction = expect(read_config(arguments.model), train, valid, lora, params)
    if arguments.free or arguments.tight:
        mx.set_memory_limit(free if arguments.free else 1)
    trained = train_adapter(arguments.model, train, valid, lora, params, report=lambda _: None)
    return {
        "predicted": prediction.peak / 1e9,
        "measured": peak_memory(),
        "live": prediction.live / 1e9,
        "held": mx.get_peak_memory() / 1e9,
        "step_ms": 1000 * trained.train_seconds / arguments.steps,
        "largest": prediction.largest,
        "phases": prediction.phases,
        "outside": prediction.outside,
        "host": prediction.host,
    }


def spread(examples: list[Any], count: int) -> list[Any]:
    """So many of them, evenly over all lengths, the longest included."""
    ordered = sorted(examples, key=lambda one: len(one.tokens))
    count = min(count, len(ordered))
    return [ordered[(number + 1) * len(ordered) // count - 1] for number in range(count)]


def quantize() -> None:
    """Write a 4-bit copy of a model's folder, as the convert stage would; both named on the command line."""
    from sqlora.mlx import mx, nn, tree_flatten

    from mlx_lm.utils import load_model

    source, target = map(Path, sys.argv[1:])
    started = time.perf_counter()
    model, config = load_model(source, lazy=True)
    settings = {"group_size": 64, "bits": 4, "mode": "affine"}
    nn.quantize(
        model,
        group_size=64,
        bits=4,
        class_predicate=lambda _, module: hasattr(module, "to_quantized") and module.weight.shape[-1] % 64 == 0,
    )
    target.mkdir()
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(target / "model.safetensors"), weights, metadata={"format": "mlx"})
    config = json.loads((source / "config.json").read_text()) | {"quantization": settings}
    (target / "config.json").write_text(json.dumps(config))
    for path in source.glob("token*"):
        shutil.copy(path, target)
    print(f"made {target} in {time.perf_counter() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
