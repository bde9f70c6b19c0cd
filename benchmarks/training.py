"""Whole training runs of sqlora, mlx_lm.lora and PEFT on the same model, examples and machine.

    python benchmarks/training.py [--settings 4x8,2x4] [--systems ours,mlx-lm,peft] [--iterations 600]
        [--workers 1,2,4]
    python benchmarks/training.py --prepare TOKENS.json --wikisql FOLDER [--tokenizer tokenizer.model]

A setting is BATCHxLAYERS. Every run is a process of its own; its wall time holds everything behind the imports: reading
the model's weights (load_seconds; ours reads them while it computes), compilation, the frozen pass, steps, validation.
late_step_ms is the mean of the second half of the steps, behind the warm-up, by the host's clock, without validations.
With --cold each run on a GPU begins without compiled kernels, and the number of those that MLX compiled is printed.
With several numbers of --workers ours runs with each, on so many of the machine's GPUs, and is compared with the first.
Tokens are the examples' own, without padding. Rank 8 on q and v, loss over all tokens, Adam, validation on all
validation examples every 200 iterations.

The model and the examples of the last run are taken (artifacts/); --model names another folder, and --shape mistral
makes a random model of Mistral-7B's shape in bfloat16 there, if the folder is not there yet. --prepare writes the
examples of the Mistral profiles' 1k split, drawn from WikiSQL's folder, in Mistral's tokens (from mistral-common, or by
--tokenizer), for --tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LEARNING_RATE = 1e-5
EVERY = 200
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 32000,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "max_position_embeddings": 32768,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}


def main() -> None:
    """Run every system in every setting and print a line for each, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", default="4x8,4x4,4x2")
    parser.add_argument("--systems", default="ours,mlx-lm,mlx-lm-slow-blas")
    parser.add_argument("--iterations", type=int, default=600)
    parser.add_argument("--model", type=Path, default=ROOT / "artifacts/model")
    parser.add_argument("--tokens", type=Path, help="JSON of encoded examples, made from artifacts/dataset by default")
    parser.add_argument("--shape", choices=["mistral"])
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--cold", action="store_true", help="compile every kernel anew in every run")
    parser.add_argument("--again", action="store_true", help="run ours a second time with another learning rate")
    parser.add_argument("--workers", default="1", help="ranks of ours; several numbers compare them")
    parser.add_argument("--prepare", type=Path, metavar="TOKENS.json")
    parser.add_argument("--wikisql", type=Path, help="folder in the official layout")
    parser.add_argument("--tokenizer", type=Path, help="a sentencepiece model")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.prepare:
        prepare(arguments.prepare, arguments.wikisql, arguments.tokenizer)
        return
    if arguments.one:
        system, setting = arguments.one.split(":")
        batch, layers = map(int, setting.split("x"))
        if system == "ours" and start_ranks(batch, int(arguments.workers)):
            return
        run_one(system, batch, layers, arguments)
        return
    if arguments.shape and not arguments.model.exists():
        make_model(arguments.model)
    with tempfile.TemporaryDirectory() as scratch:
        tokens = arguments.tokens or Path(scratch) / "tokens.json"
        if not arguments.tokens:
            write_tokens(arguments.model, tokens)
        for setting in arguments.settings.split(","):
            rates: dict[str, dict[str, float]] = {}
            systems = arguments.systems.split(",") + ["ours again"] * arguments.again
            first, *more = map(int, arguments.workers.split(","))
            # Each setting begins without the states of the one before; a second run of ours finds the first one's.
            with tempfile.TemporaryDirectory(dir=scratch) as own:
                for system in systems:
                    rates[system] = start(system, setting, tokens.resolve(), Path(own), arguments, first)
            if "ours" not in rates:
                continue
            for system, rate in rates.items():
                if system != "ours":
                    speed = rates["ours"]["tokens_per_second"] / rate["tokens_per_second"]
                    memory = rates["ours"]["peak_gb"] / rate["peak_gb"]
                    print(f"{setting}: ours over {system}: {speed:.2f} times the speed, {memory:.2f} of its memory")
            for workers in more:
                with tempfile.TemporaryDirectory(dir=scratch) as another:  # without the states of the run before
                    rate = start("ours", setting, tokens.resolve(), Path(another), arguments, workers)
                print(
                    f"{setting}: ours, {workers} ranks over {first}: {compare_ranks(rate, rates['ours'])}", flush=True
                )


def compare_ranks(many: Mapping[str, float], few: Mapping[str, float]) -> str:
    """Figures of a run beside those of another with fewer ranks."""

    def speed(name: str) -> float:
        return few.get(name, float("nan")) / many.get(name, float("nan"))

    apart = abs(many.get("valid_loss", float("nan")) - few.get("valid_loss", float("nan")))
    return (
        f"{speed('seconds'):.2f} times the speed (steps {speed('step_seconds'):.2f}, late ones "
        f"{speed('late_step_ms'):.2f}, frozen pass {speed('frozen_seconds'):.2f}), losses {apart:.4f} apart"
    )


def start(
    system: str, setting: str, tokens: Path, scratch: Path, arguments: argparse.Namespace, workers: int
) -> dict[str, float]:
    """Run one system in a process of its own; returns and prints its figures."""
    rate = arguments.learning_rate * (2 if system == "ours again" else 1)
    command = [sys.executable, __file__, "--one", f"{system.removesuffix(' again')}:{setting}", "--tokens", str(tokens)]
    command += ["--model", str(arguments.model.resolve()), "--iterations", str(arguments.iterations)]
    command += ["--learning-rate", str(rate), "--workers", str(workers)]
    environment = dict(os.environ)
    if "," in arguments.workers:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(workers)))
    if arguments.cold:
        environment["MLX_PTX_CACHE_DIR"] = cache = tempfile.mkdtemp(dir=scratch)
    if system == "mlx-lm-slow-blas":
        environment["SQLORA_BLAS"] = "mlx"
    done = subprocess.run(command, cwd=scratch, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(f"{setting} {system}: failed with {done.returncode}", flush=True)
        return {"tokens_per_second": float("nan"), "peak_gb": float("nan")}
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if arguments.cold:
        figures["kernels_compiled_by_mlx"] = len(list(Path(cache).rglob("*.ptx")))
    name = system + f", {workers} ranks" * (workers > 1)
    print(f"{setting} {name:<18}" + ", ".join(f"{name} {value:g}" for name, value in figures.items()), flush=True)
    return figures


def run_one(system: str, batch: int, layers: int, arguments: argparse.Namespace) -> None:
    """Train once and print the figures as JSON."""
    data = json.loads(arguments.tokens.read_text())
    runs = {"ours": ours, "mlx-lm": mlx_lm, "mlx-lm-slow-blas": mlx_lm, "peft": peft}
    figures = runs[system](arguments.model, data, batch, layers, arguments.iterations, arguments.learning_rate)
    if not figures:  # a rank other than the first
        return
    figures["tokens_per_second"] = round(figures["tokens"] / figures["seconds"], 1)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


def start_ranks(batch: int, workers: int) -> bool:
    """Set MLX as the train stage does; whether this process has run the ranks and there is nothing left to do."""
    from sqlora.distributed.launch import launched
    from sqlora.runtime import cut_graphs
    from sqlora.train.division import most_rows

    cut_graphs(most_rows(batch, 1, workers))
    return launched(workers, None, "auto")


def ours(
    model: Path, data: dict[str, Any], batch: int, layers: int, iterations: int, learning_rate: float
) -> dict[str, float]:
    """The train stage's engine; `.sqlora` lies in the current folder."""
    from sqlora.mlx import mx  # noqa: F401 - first of all

    from train_params import train_params

    from sqlora.distributed.rank import joined
    from sqlora.model import load_lazily
    from sqlora.params.lora import LoraParams
    from sqlora.plan.check import expect
    from sqlora.tokenizer import Encoded
    from sqlora.train.batching import batching_of
    from sqlora.train.data import read_config
    from sqlora.train.fused import packs
    from sqlora.train.inputs import lengths_of
    from sqlora.train.report import Report
    from sqlora.train.run import train_adapter

    train, valid = ([Encoded(tuple(ids), prompt) for ids, prompt in data[name]] for name in ("train", "valid"))
    lora = LoraParams("lora", layers, 8, 20.0, 0.0, ("q_proj", "v_proj"))
    params = train_params(
        batch_size=batch,
        iterations=iterations,
        learning_rate=learning_rate,
        validate_every=EVERY,
    )
    with joined() as group:
        group.barrier()
        prediction = expect(read_config(model), train, valid, lora, params, group)  # as the stage: it sets MLX's limit
        seen: list[tuple[int, bool, float]] = []

        def noted(report: Report) -> None:
            seen.append((report.iteration, report.valid_loss_all is None, time.perf_counter()))

        started = time.perf_counter()
        trained = train_adapter(model, train, valid, lora, params, report=noted, group=group)
        seconds = time.perf_counter() - started
        if group.rank:
            return {}
    lengths = [len(example.tokens) - 1 for example in train]
    packed = packs(load_lazily(model)[0].layers, lora, max(len(example.tokens) - 1 for example in (*train, *valid)))
    batching = batching_of(train, None if packed else lengths_of(train, batch_size=batch), params, 1)
    tokens = sum(len(train[index].tokens) for step in range(iterations) for index in batching.examples(step))
    below, above = matmul_flop(read_config(model), layers)
    once = trained.computed * below * sum(lengths) / len(lengths)
    return {
        "seconds": seconds,
        "tokens": tokens,
        "peak_gb": max(trained.peaks),
        "predicted_gb": prediction.peak / 1e9,
        "frozen_peak_gb": trained.frozen_peak,
        "frozen_seconds": trained.frozen_seconds,
        "step_seconds": trained.train_seconds,
        "late_step_ms": late_step_ms(seen, iterations),
        "validation_seconds": trained.validation_seconds,
        "valid_loss": trained.reports[-1].valid_loss_all or 0.0,
        "tflop_per_second": (once + tokens * above) / seconds / 1e12,
        "tflop_per_second_of_steps": tokens * above / trained.train_seconds / 1e12,
    }


def late_step_ms(reports: Sequence[tuple[int, bool, float]], iterations: int) -> float:
    """Of ours: from one report to the next where both are of training alone, in the second half of the run.

    Args:
        reports: iteration, whether it is of training alone, and when it came.
    """
    taken, seconds = 0, 0.0
    for (before, plain, at), (after, plain_too, then) in pairwise(reports):
        if plain and plain_too and before >= iterations // 2:
            taken, seconds = taken + after - before, seconds + then - at
    return 1000 * seconds / taken if taken else float("nan")


def matmul_flop(config: Mapping[str, Any], layers: int) -> tuple[float, float]:
    """FLOP a token in matrix products with weights: below the adapted layers, forward; above, forward and back."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    size = config.get("head_dim") or width // heads
    keys = config.get("num_key_value_heads", heads) * size
    layer = width * (2 * heads * size + 2 * keys + 3 * config["intermediate_size"])  # weights
    # Two FLOP a weight forward; two more for the gradient of the input, and none for that of a frozen weight.
    below = 2 * layer * (config["num_hidden_layers"] - layers)
    return below, 4 * layer * layers + 4 * width * config["vocab_size"]


def mlx_lm(
    model: Path, data: dict[str, Any], batch: int, layers: int, iterations: int, learning_rate: float
) -> dict[str, float]:
    """mlx_lm.lora's own training loop, with its batches."""
    from sqlora.mlx import mx, optimizers

    import numpy as np
    from mlx_lm.tuner.trainer import TrainingArgs, TrainingCallback, train
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    from sqlora.memory import peak_memory

    loading = time.perf_counter()
    base, _ = load_model(model)
    loaded = time.perf_counter() - loading
    np.random.seed(1)
    mx.random.seed(1)
    base.freeze()
    keys = ["self_attn.q_proj", "self_attn.v_proj"]
    linear_to_lora_layers(base, layers, {"rank": 8, "dropout": 0.0, "scale": 20.0, "keys": keys})
    seen: dict[str, float] = {}

    class Callback(TrainingCallback):  # type: ignore[misc]
        def on_train_loss_report(self, info: dict[str, Any]) -> None:
            seen["tokens"] = info["trained_tokens"]

        def on_val_loss_report(self, info: dict[str, Any]) -> None:
            seen["valid_loss_its_own"] = info["val_loss"]
            seen["validation_seconds"] = seen.get("validation_seconds", 0.0) + info["val_time"]

    args = TrainingArgs(
        batch_size=batch,
        iters=iterations,
        val_batches=-1,
        steps_per_eval=EVERY,
        steps_per_save=10**9,
        adapter_file="adapters.safetensors",
    )
    train_set, valid_set = ([(ids, 0) for ids, _ in data[name]] for name in ("train", "valid"))
    started = time.perf_counter()
    train(
        base,
        optimizers.Adam(learning_rate=learning_rate),
        train_set,
        valid_set,
        args=args,
        training_callback=Callback(),
    )
    seconds = time.perf_counter() - started + loaded
    peak = peak_memory()
    seen["step_seconds"] = seconds - loaded - seen["validation_seconds"]
    # Its own loss counts a padding token behind every row as a target.
    seen["valid_loss"] = loss_of_tokens(base, [ids for ids, _ in data["valid"]])
    return {"seconds": seconds, "load_seconds": loaded, **seen, "peak_gb": peak}


def loss_of_tokens(model: Any, rows: list[list[int]]) -> float:
    """Mean loss of all tokens but the first, without padding, of an mlx-lm model."""
    from sqlora.mlx import mx, nn

    total, count = 0.0, 0
    for row in rows:
        padded = row + [0] * (-len(row) % 32 + 1)  # few shapes
        logits = model(mx.array([padded[:-1]]))[0, : len(row) - 1]
        total += nn.losses.cross_entropy(logits.astype(mx.float32), mx.array(row[1:])).sum().item()
        count += len(row) - 1
    return total / count


def peft(
    model: Path, data: dict[str, Any], batch: int, layers: int, iterations: int, learning_rate: float
) -> dict[str, float]:
    """transformers with PEFT's LoRA, a plain PyTorch loop, rows padded to the longest of their batch."""
    import random

    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    loading = time.perf_counter()
    base = AutoModelForCausalLM.from_pretrained(model, dtype="auto").to(device)
    loaded = time.perf_counter() - loading
    count = base.config.num_hidden_layers
    config = LoraConfig(
        r=8,
        lora_alpha=160,  # a scale of 20
        target_modules=["q_proj", "v_proj"],
        layers_to_transform=list(range(count - layers, count)),
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(base, config)
    optimizer = torch.optim.Adam([p for p in wrapped.parameters() if p.requires_grad], lr=learning_rate)
    rng = random.Random(1)

    def batch_of(rows: list[list[int]]) -> dict[str, Any]:
        length = max(map(len, rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=device)
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}

    def validate() -> float:
        wrapped.eval()
        total = tokens = 0.0
        rows = sorted((ids for ids, _ in data["valid"]), key=len)
        with torch.no_grad():
            for at in range(0, len(rows), batch):
                chosen = rows[at : at + batch]
                counted = sum(len(row) - 1 for row in chosen)
                total += wrapped(**batch_of(chosen)).loss.item() * counted
                tokens += counted
        wrapped.train()
        return total / tokens

    rows = [ids for ids, _ in data["train"]]
    order: list[int] = []
    trained = 0
    validating = 0.0

    def validate_timed() -> float:
        nonlocal validating
        if device == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        result = validate()
        validating += time.perf_counter() - begun
        return result

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    loss = validate_timed()
    late = 0.0
    for step in range(1, iterations + 1):
        begun = time.perf_counter()
        if len(order) < batch:
            order = rng.sample(range(len(rows)), len(rows))
        chosen = [rows[order.pop()] for _ in range(batch)]
        wrapped(**batch_of(chosen)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        trained += sum(map(len, chosen))
        if step > iterations // 2:
            late += time.perf_counter() - begun
        if step % EVERY == 0 or step == iterations:
            loss = validate_timed()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started + loaded
    peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else float("nan")
    return {
        "seconds": seconds,
        "load_seconds": loaded,
        "step_seconds": seconds - loaded - validating,
        "late_step_ms": 1000 * late / (iterations - iterations // 2),
        "validation_seconds": validating,
        "tokens": trained,
        "peak_gb": peak,
        "valid_loss": loss,
    }


def write_tokens(model: Path, target: Path) -> None:
    """Encode the examples of the last run with the model's tokenizer."""
    from sqlora.text import read_examples

    examples = {name: list(read_examples(ROOT / f"artifacts/dataset/{name}.jsonl")) for name in ("train", "valid")}
    encode(examples, model, target)


def prepare(target: Path, wikisql: Path, tokenizer: Path | None) -> None:
    """Draw 1,000 and 100 examples as the split stage does, and encode them with Mistral's tokenizer."""
    from mistral_tokenizer import tokenizer_model

    from sqlora.params.split import SplitParams
    from sqlora.split.draw import draw_split

    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "tokenizer.model").write_bytes(tokenizer_model(tokenizer))
        encode(draw_split(wikisql, SplitParams(1000, 100, 500, "tables", False, 1)).examples, Path(scratch), target)
    print_padding([len(tokens) - 1 for tokens, _ in json.loads(target.read_text())["train"]])


def print_padding(lengths: list[int]) -> None:
    """Of an epoch's tokens at several batch sizes: padding, and with the empty rows that fill a GPU's batches; and of
    1,000 steps' where examples lie one after another, over one rank and over four.
    """
    from train_params import train_params

    from sqlora.train.batching import Packed, Sizes
    from sqlora.train.buckets import bucket_of, choose_lengths, epoch_batches

    for size in (1, 2, 4, 8, 16, 32, 64):
        buckets = choose_lengths(lengths, batch_size=size)
        batches = epoch_batches(lengths, buckets, size, 1, 0)
        longest = [bucket_of(max(lengths[index] for index in batch), buckets) for batch in batches]
        padded = sum(len(batch) * length for batch, length in zip(batches, longest, strict=True))
        shares = (1 - sum(lengths) / tokens for tokens in (padded, size * sum(longest)))
        print(f"batch {size}: {len(buckets)} lengths, padding {' and '.join(f'{share:.1%}' for share in shares)}")
        for ranks in (1, 4):
            packed = Packed(Sizes(lengths, lengths), train_params(batch_size=size, iterations=1000), ranks)
            batches = [one for step in range(1000) for rank in range(ranks) for one in packed.share(step, rank)]
            tokens = [one.length for one in batches]
            real = sum(lengths[index] for one in batches for index in one.chosen)
            share = 1 - real / sum(tokens)
            shapes = sorted(set(tokens))
            print(f"    packed, {ranks} ranks: {len(shapes)} shapes up to {shapes[-1]} tokens, filling {share:.1%}")


def encode(examples: Mapping[str, Sequence[Any]], model: Path, target: Path) -> None:
    """Write the tokens of training and validation examples, and how many of each are the prompt's."""
    from sqlora.tokenizer import Tokenizer

    tokenizer = Tokenizer(model)
    data = {}
    for name in ("train", "valid"):
        encoded = [tokenizer.encode_example(example.prompt, example.completion) for example in examples[name]]
        data[name] = [(one.tokens, one.prompt_tokens) for one in encoded]
    target.write_text(json.dumps(data))


def make_model(folder: Path) -> None:
    """A random model of Mistral-7B's shape, 14.5 GB in bfloat16."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(MISTRAL))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    wide, keys, hidden = 14336, 1024, 4096

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, device=device) * 0.02).to(torch.bfloat16).cpu()

    def ones() -> torch.Tensor:
        return torch.ones(hidden, dtype=torch.bfloat16)

    shards: list[dict[str, torch.Tensor]] = [{"model.embed_tokens.weight": random(32000, hidden)}]
    for layer in range(32):
        name = f"model.layers.{layer}."
        tensors = {
            name + "self_attn.q_proj.weight": random(hidden, hidden),
            name + "self_attn.k_proj.weight": random(keys, hidden),
            name + "self_attn.v_proj.weight": random(keys, hidden),
            name + "self_attn.o_proj.weight": random(hidden, hidden),
            name + "mlp.gate_proj.weight": random(wide, hidden),
            name + "mlp.up_proj.weight": random(wide, hidden),
            name + "mlp.down_proj.weight": random(hidden, wide),
            name + "input_layernorm.weight": ones(),
            name + "post_attention_layernorm.weight": ones(),
        }
        if len(shards[-1]) > 70:
            shards.append({})
        shards[-1] |= tensors
    shards[-1] |= {"model.norm.weight": ones(), "lm_head.weight": random(32000, hidden)}
    index = {}
    for number, tensors in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    os.sync()  # while the disk still writes 14.5 GB, the first run's checkpoints wait for it


if __name__ == "__main__":
    main()
