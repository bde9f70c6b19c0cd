"""Pre-trains the demo base on one GPU (or, slowly, a CPU) from shards that worker processes write meanwhile."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from corpus import Tokens, write_shard
from examples import Pool
from model import Shape, Transformer
from torch import Tensor

SHARD_ROWS = 2048


@dataclass(frozen=True)
class Budget:
    """tokens: positions trained on (padding at row ends included); rows and length: of a batch."""

    tokens: int
    rows: int = 256
    length: int = 512
    learning_rate: float = 2.5e-3
    warmup: float = 0.02
    cooldown: float = 0.35
    weight_decay: float = 0.1
    seed: int = 1
    workers: int = 13


def pretrain(data: Path, tokenizer: Path, scratch: Path, shape: Shape, budget: Budget) -> tuple[Transformer, dict]:
    """Train from scratch; returns the model and what the model card reports about the run."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(budget.seed)
    torch.set_float32_matmul_precision("high")
    model = Transformer(shape).to(device)
    forward = torch.compile(model) if device == "cuda" else model
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": budget.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=budget.learning_rate,
        betas=(0.9, 0.95),
        fused=device == "cuda",
    )
    steps = budget.tokens // (budget.rows * budget.length)
    started, shown = time.monotonic(), (0.0, 0.0)
    held_out = _held_out(data, tokenizer, scratch, budget)
    for step, (ids, weights) in enumerate(_batches(data, tokenizer, scratch, steps, budget)):
        rate = budget.learning_rate * _schedule(step / steps, budget)
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids, weights = ids.to(device, non_blocking=True), weights.to(device, non_blocking=True)
        with torch.autocast(device, torch.bfloat16):
            losses = _losses(model, forward(ids[:, :-1]), ids[:, 1:])
        loss = (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 200 == 0 or step == steps - 1:
            seconds = time.monotonic() - started
            shown = (loss.item(), (step + 1) * budget.rows * budget.length / seconds)
            print(
                f"step {step}/{steps} loss {shown[0]:.4f} rate {rate:.2e} {shown[1] / 1e6:.2f}M tokens/s "
                f"{seconds:.0f}s",
                flush=True,
            )
        if step % 3000 == 2999:
            print(f"step {step} held-out query loss {_evaluate(model, held_out, device):.4f}", flush=True)
    held_out_loss = _evaluate(model, held_out, device)
    print(f"held-out query loss {held_out_loss:.4f} after {time.monotonic() - started:.0f}s", flush=True)
    return model, {
        "tokens": steps * budget.rows * budget.length,
        "seconds": round(time.monotonic() - started),
        "train_loss": round(shown[0], 4),
        "held_out_query_loss": round(held_out_loss, 4),
    }


def _losses(model: Transformer, hidden: Tensor, targets: Tensor) -> Tensor:
    logits = model.output(hidden)
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view(targets.shape)


def _schedule(done: float, budget: Budget) -> float:
    """Warm-up, constant, then linear to zero over the last `cooldown` of the run."""
    return min(1.0, done / budget.warmup, (1 - done) / budget.cooldown) if done > 0 else 0.01


def _held_out(data: Path, tokenizer: Path, scratch: Path, budget: Budget) -> tuple[Tensor, Tensor]:
    path = scratch / "held-out.npy"
    # Other questions and tables: the dev part, which training never reads.
    write_shard(path, 0, Tokens(tokenizer), Pool.from_wikisql(data, part="dev"), rows=512, length=budget.length)
    return _load(path)


@torch.no_grad()
def _evaluate(model: Transformer, held_out: tuple[Tensor, Tensor], device: str) -> float:
    total = count = 0.0
    for ids, weights in zip(held_out[0].split(64), held_out[1].split(64)):
        ids, counted = ids.to(device), weights[:, 1:].to(device) > 0.9
        with torch.autocast(device, torch.bfloat16):
            losses = _losses(model, model(ids[:, :-1]), ids[:, 1:])
        total += losses[counted].sum().item()
        count += counted.sum().item()
    return total / count


def _load(path: Path) -> tuple[Tensor, Tensor]:
    with open(path, "rb") as file:
        ids, weights = np.load(file), np.load(file)
    return torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(weights.astype(np.float32))


def _batches(data: Path, tokenizer: Path, scratch: Path, steps: int, budget: Budget) -> Iterator[tuple[Tensor, Tensor]]:
    shards = math.ceil(steps * budget.rows / SHARD_ROWS)
    arguments = [
        (scratch / f"shard-{n:05}.npy", budget.seed * 100_003 + n, data, tokenizer, budget.length)
        for n in range(shards)
    ]
    # A window of shards in order, each from its own seed: what is trained on does not depend on the workers' speed.
    with multiprocessing.get_context("spawn").Pool(budget.workers) as workers:
        window = [workers.apply_async(_write, a) for a in arguments[: 4 * budget.workers]]
        generator = torch.Generator().manual_seed(budget.seed)
        for number, (path, *_) in enumerate(arguments):
            window[number].get()
            if len(window) < shards:
                window.append(workers.apply_async(_write, arguments[len(window)]))
            ids, weights = _load(path)
            path.unlink()
            for rows in torch.randperm(len(ids), generator=generator).split(budget.rows):
                if steps == 0:
                    return
                steps -= 1
                yield ids[rows], weights[rows]


_WORKER: dict[str, tuple[Pool, Tokens]] = {}


def _write(path: Path, seed: int, data: Path, tokenizer: Path, length: int) -> None:
    if str(data) not in _WORKER:
        _WORKER[str(data)] = (Pool.from_wikisql(data), Tokens(tokenizer))
    pool, tokens = _WORKER[str(data)]
    write_shard(path, seed, tokens, pool, rows=SHARD_ROWS, length=length)
