"""A training run from files to an adapter: frozen layers first, then the steps, resumed where an earlier run ended."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

from sqlora.mlx import mx

import numpy as np
from filelock import FileLock, Timeout
from mlx_lm.utils import load_model
from numpy.typing import NDArray

from sqlora.errors import SqloraError
from sqlora.params.lora import LoraParams
from sqlora.params.train import TrainParams
from sqlora.tokenizer import Encoded
from sqlora.train import checkpoint
from sqlora.train.buckets import choose_lengths, used_examples
from sqlora.train.engine import Data, Engine, Interrupted, Report
from sqlora.train.identity import model_identity
from sqlora.train.interruption import watching
from sqlora.train.lora import add_lora
from sqlora.train.states import ROOT, StateStore, key_of, make_room
from sqlora.train.step import Stepper
from sqlora.train.upper import Upper, fill_store, state_dtype

_ENGINE = 2  # goes up when equal inputs no longer give equal bits, so that older checkpoints are left alone
_LOCK_SECONDS = 15.0  # an earlier trainer whose dvc was killed notices within a second and a step


@dataclass(frozen=True)
class Trained:
    """adapter: name as in mlx-lm's file -> array; step: which one is published; states: how many examples' states were
    computed and how many were there; seconds: of the frozen pass, of the steps, of validation.
    """

    adapter: dict[str, mx.array]
    reports: list[Report]
    step: int
    computed: int
    reused: int
    frozen_seconds: float
    train_seconds: float
    validation_seconds: float


def train_adapter(
    model: Path,
    train: Sequence[Encoded],
    valid: Sequence[Encoded],
    lora: LoraParams,
    params: TrainParams,
    *,
    report: Callable[[Report], None],
) -> Trained:
    """Train an adapter for the converted model in a folder.

    Raises:
        SqloraError: settings that do not fit the model, no room on the disk, a loss that is not finite, another run of
            the same inputs that goes on.
        KeyboardInterrupt: the run was asked to end; it has saved a checkpoint.
    """
    base, config = load_model(model, lazy=True)
    layers = len(base.layers)
    if lora.layers > layers:
        raise SqloraError(
            "params.yaml",
            found=f"lora.layers: {lora.layers}",
            expected=f"at most {layers}, the number of layers of the base model",
            next_step="Lower lora.layers.",
        )
    frozen = layers - lora.layers if params.states_gb else 0
    buckets = choose_lengths([len(example.tokens) - 1 for example in (*train, *valid)])
    weights = model_identity(model)
    run = checkpoint.fingerprint(
        {
            "model": weights,
            "train": [key_of(example.tokens) for example in train],
            "prompts": [example.prompt_tokens for example in train],
            "valid": [key_of(example.tokens) for example in valid],
            "lora": asdict(lora),
            # Whether memory was checked does not change what is learnt.
            "params": {key: value for key, value in asdict(params).items() if key != "force"},
            "device": str(mx.default_device()),
            "mlx": metadata.version("mlx"),
            "engine": _ENGINE,
        }
    )
    folder = checkpoint.ROOT / run
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=_LOCK_SECONDS), watching() as watch:
            started = perf_counter()
            inputs, computed, reused = _inputs(model, config, frozen, buckets, train, valid, weights, params)
            frozen_seconds = perf_counter() - started
            upper = Upper(base, frozen)
            upper.freeze()
            upper.load()
            upper.checkpointing = params.gradient_checkpointing
            add_lora(upper, lora, params.seed)
            stepper = Stepper(upper, lora, params)
            data = [Data(examples, inputs(examples), buckets) for examples in (train, valid)]
            engine = Engine(stepper, data[0], data[1], params, folder, report=report, stop=watch)
            _announce(folder)
            started = perf_counter()
            adapter = engine.run()
            seconds = perf_counter() - started - engine.validation_seconds
    except Timeout:
        raise SqloraError(
            folder / "lock",
            found="another training of the same inputs that goes on",
            expected="one at a time",
            next_step="Wait for it, or end the process (`ps aux | grep stages/train.py`); then run dvc repro again.",
        ) from None
    except Interrupted:
        raise KeyboardInterrupt from None
    return Trained(
        {_published_name(name, frozen): value for name, value in adapter.items()},
        engine.reports,
        engine.best_step if params.keep == "best" else engine.step,
        computed,
        reused,
        frozen_seconds,
        seconds,
        engine.validation_seconds,
    )


Fetcher = Callable[[Sequence[int], int], NDArray[np.generic]]


def _inputs(
    model: Path,
    config: dict[str, Any],
    frozen: int,
    buckets: Sequence[int],
    train: Sequence[Encoded],
    valid: Sequence[Encoded],
    weights: str,
    params: TrainParams,
) -> tuple[Callable[[Sequence[Encoded]], Fetcher], int, int]:
    """What gives the model's inputs: stored states, or tokens if no layer is frozen; computed and reused examples."""
    if not frozen:
        return _tokens, 0, 0
    lengths = [len(example.tokens) - 1 for example in train]
    steps = params.iterations * params.gradient_accumulation
    used = used_examples(steps, lengths, buckets, params.batch_size, params.seed)
    wanted = [example.tokens[:-1] for example in (*(train[index] for index in used), *valid)]
    width, dtype = config["hidden_size"], state_dtype(config)
    # The buckets belong to the name: padded to other lengths, states differ in their last bits.
    name = checkpoint.fingerprint(
        {"model": weights, "frozen": frozen, "buckets": list(buckets), "device": str(mx.default_device())}
    )
    needed = sum(map(len, wanted)) * width * np.dtype(dtype).itemsize
    _require_room(needed, params.states_gb)
    store = StateStore(ROOT / name, width, dtype)
    dropped = make_room(ROOT, ROOT / name, int(params.states_gb * 1e9) - needed)
    if dropped:
        print(f"dropped the states of {len(dropped)} earlier settings to make room")
    computed = fill_store(store, model, frozen, wanted, buckets)
    distinct = len({key_of(tokens) for tokens in wanted})
    print(f"frozen layers: {computed:,} examples computed, {distinct - computed:,} reused, {needed / 1e9:.2f} GB")

    def stored(examples: Sequence[Encoded]) -> Fetcher:
        keys = [key_of(example.tokens[:-1]) for example in examples]
        return lambda chosen, length: store.read([keys[index] for index in chosen], length)

    return stored, computed, distinct - computed


def _tokens(examples: Sequence[Encoded]) -> Fetcher:
    def fetch(chosen: Sequence[int], length: int) -> NDArray[np.generic]:
        batch = np.zeros((len(chosen), length), dtype=np.int32)
        for row, index in enumerate(chosen):
            batch[row, : len(examples[index].tokens) - 1] = examples[index].tokens[:-1]
        return batch

    return fetch


def _require_room(needed: int, states_gb: float) -> None:
    ROOT.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(ROOT).free
    if needed > states_gb * 1e9 or needed > free:
        raise SqloraError(
            ROOT,
            found=f"room for {min(states_gb, free / 1e9):.1f} GB "
            f"(train.states_gb {states_gb:g}, {free / 1e9:.1f} free)",
            expected=f"{needed / 1e9:.1f} GB for the states of the frozen layers",
            next_step="Raise train.states_gb or free some space; with train.states_gb 0 nothing is stored, and each "
            "step computes all layers.",
        )


def _announce(folder: Path) -> None:
    """Say whether this run goes on or starts, and drop the checkpoints of all but the latest few runs."""
    mine = checkpoint.steps(folder)
    if mine:
        print(f"going on from {mine[-1].name} in {folder}")
    runs = [path for path in checkpoint.ROOT.iterdir() if path.is_dir()]
    for path in sorted(runs, key=lambda path: path.stat().st_mtime)[: -checkpoint.KEPT]:
        if path != folder:
            shutil.rmtree(path, ignore_errors=True)


def _published_name(name: str, frozen: int) -> str:
    """`model.model.layers.2.…` of the upper part -> `model.layers.18.…` of the whole model."""
    parts = name.split(".")[1:]
    parts[2] = str(int(parts[2]) + frozen)
    return ".".join(parts)
