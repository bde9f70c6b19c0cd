"""A training run from files to an adapter: frozen layers first, then the steps, resumed where an earlier run ended."""

from __future__ import annotations

import gc
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

from sqlora.mlx import mx

from filelock import FileLock, Timeout

from sqlora.distributed.group import ALONE, Group
from sqlora.distributed.rank import watching_together
from sqlora.errors import SqloraError
from sqlora.memory import peak_memory
from sqlora.model import load_lazily
from sqlora.params.lora import LoraParams
from sqlora.params.train import TrainParams
from sqlora.runtime import has_cuda
from sqlora.tokenizer import Encoded
from sqlora.train import checkpoint
from sqlora.train.buckets import VALIDATION_PADDING
from sqlora.train.cuda.compiler import begin_compiling
from sqlora.train.engine import Engine
from sqlora.train.fused import packs
from sqlora.train.identity import model_identity
from sqlora.train.inputs import Inputs, lengths_of, lock_if, prepare_inputs
from sqlora.train.interruption import Interrupted
from sqlora.train.lora import add_lora
from sqlora.train.report import Report
from sqlora.train.states import key_of
from sqlora.train.step import Stepper, compiles
from sqlora.train.upper import Upper
from sqlora.train.validation import Data

_ENGINE = 16  # goes up when equal inputs no longer give equal bits, or checkpoints hold something else
# Of the section `train`: where, with how many processes, whether memory is checked, how often checkpoints are saved and
# what stored states may take; none changes a result, but for whether states are stored at all, which is `frozen`.
_NO_INPUTS = ("workers", "hostfile", "backend", "force", "checkpoint_every", "states_gb")


@dataclass(frozen=True)
class Trained:
    """adapter: name as in mlx-lm's file -> array, in one order; step: which one is published; computed, reused: of how
    many examples states were computed and were there; seconds: of the frozen pass, the steps, validation; peaks: each
    rank's memory in GB; frozen_peak: what the largest had reached when the frozen pass was through.
    """

    adapter: dict[str, mx.array]
    reports: list[Report]
    step: int
    computed: int
    reused: int
    frozen_seconds: float
    train_seconds: float
    validation_seconds: float
    peaks: list[float]
    frozen_peak: float


def train_adapter(
    model: Path,
    train: Sequence[Encoded],
    valid: Sequence[Encoded],
    lora: LoraParams,
    params: TrainParams,
    *,
    report: Callable[[Report], None],
    group: Group = ALONE,
) -> Trained:
    """Train an adapter for the converted model in a folder; every rank of the group calls this and gets the same.

    Raises:
        SqloraError: a split without examples, settings that do not fit the model, no room on the disk, a loss that is
            not finite, another run of the same inputs that goes on.
        KeyboardInterrupt: the run was asked to end; it has saved a checkpoint.
    """
    for split, examples in (("train", train), ("valid", valid)):
        if not examples:
            raise SqloraError(
                f"the {split} split",
                found="no example",
                expected="at least one",
                next_step=f"Raise split.{split}_size in params.yaml and run dvc repro.",
            )
    base, _ = load_lazily(model)
    layers = len(base.layers)
    if lora.layers > layers:
        raise SqloraError(
            "params.yaml",
            found=f"lora.layers: {lora.layers}",
            expected=f"at most {layers}, the number of layers of the base model",
            next_step="Lower lora.layers.",
        )
    longest = max(len(example.tokens) - 1 for example in (*train, *valid))
    # On unlike devices none packs, or the ranks would have other examples in their steps.
    packed = all(group.each(packs(base.layers, lora, longest)))
    del base
    given = model, train, valid, lora, params, report, group
    if packed:
        try:
            return _train(*given, packed=True)
        except _NoAttentionError as error:
            computed = error.computed
        # Not in there, where the first try's arrays would still be held; what is compiled refers to itself.
        gc.collect()
        mx.clear_cache()
        if group.rank == 0:
            print("batches are padded instead, which takes more memory than was predicted", file=sys.stderr)
        trained = _train(*given, packed=False)
        return replace(trained, computed=trained.computed + computed, reused=max(0, trained.reused - computed))
    return _train(*given, packed=False)


class _NoAttentionError(Exception):
    """The kernels for examples one after another could not be compiled, on some rank.

    computed: of how many examples the frozen layers' states were computed before that was known.
    """

    def __init__(self, computed: int) -> None:
        super().__init__("no attention kernels")
        self.computed = computed


def _train(
    model: Path,
    train: Sequence[Encoded],
    valid: Sequence[Encoded],
    lora: LoraParams,
    params: TrainParams,
    report: Callable[[Report], None],
    group: Group,
    *,
    packed: bool,
) -> Trained:
    """As train_adapter; packed: with examples one after another in its batches."""
    base, config = load_lazily(model)
    frozen = len(base.layers) - lora.layers if params.states_gb else 0
    buckets = None if packed else lengths_of(train, batch_size=params.batch_size)
    weights = model_identity(model)
    inputs_of_run = {
        "model": weights,
        "train": [key_of(example.tokens) for example in train],
        "prompts": [example.prompt_tokens for example in train],
        "valid": [key_of(example.tokens) for example in valid],
        "frozen": frozen,
        "packed": packed,
        "lora": asdict(lora),
        "params": {name: value for name, value in asdict(params).items() if name not in _NO_INPUTS},
        "device": str(mx.default_device()),
        "mlx": metadata.version("mlx"),
        "engine": _ENGINE,
    }
    if lora.dropout and group.size > 1:
        inputs_of_run["workers"] = group.size  # each rank draws masks of its own
    group.require_same(inputs_of_run)
    run = checkpoint.fingerprint(inputs_of_run)
    folder = checkpoint.ROOT / run
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with lock_if(folder / "lock", group.rank == 0), watching_together(group) as watch:
            started = perf_counter()
            size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
            begin_compiling(config.get("torch_dtype", ""), size)
            asked = watch if group.size == 1 else group.asked
            prepare = partial(
                prepare_inputs, model, config, frozen, buckets, train, valid, weights, params, group, asked
            )
            inputs = prepare(check_later=True)
            frozen_seconds, frozen_peak = perf_counter() - started, peak_memory()
            upper, waited = _load(base, frozen, group, inputs)
            frozen_seconds += waited
            started = perf_counter()
            if not inputs.sound():
                inputs.settle()
                del base, upper  # the frozen pass has room for two layers
                inputs = prepare(check_later=False)
                frozen_peak = peak_memory()
                upper, _ = _load(load_lazily(model)[0], frozen, group, inputs)
            frozen_seconds += perf_counter() - started
            upper.checkpointing = params.gradient_checkpointing
            add_lora(upper, lora, params.seed)
            stepper = Stepper(upper, lora, params, group, compiled=compiles(), fused=has_cuda())
            if packed and not all(group.each(stepper.packs)):
                inputs.settle()
                raise _NoAttentionError(inputs.counts()[0])
            engine = Engine(
                stepper,
                Data(train, inputs.fetcher(train), buckets, inputs.token_bytes),
                Data(
                    valid,
                    inputs.fetcher(valid),
                    None if packed else lengths_of(valid, most_padding=VALIDATION_PADDING),
                    inputs.token_bytes,
                ),
                params,
                folder,
                report=report,
                stop=watch,
                asked=asked,
                group=group,
            )
            if group.rank == 0:
                _announce(folder)
            adapter = engine.run()
            inputs.settle()
            peaks, frozen_peaks = group.each(peak_memory()), group.each(frozen_peak)
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
        # In one order: the best so far of a run that was resumed comes from a file, which has another.
        {_published_name(name, frozen): adapter[name] for name in sorted(adapter)},
        engine.reports,
        engine.best_step if params.keep == "best" else engine.step,
        *inputs.counts(),
        frozen_seconds,
        engine.train_seconds,
        engine.validation_seconds,
        [round(peak, 3) for peak in peaks],
        round(max(frozen_peaks), 3),
    )


def _load(base: Any, frozen: int, group: Group, inputs: Inputs) -> tuple[Upper, float]:
    """The trained part with its weights, once the inputs are in their files and out of memory, and for how many seconds
    it waited for these behind the weights.
    """
    upper = Upper(base, frozen)
    upper.freeze()
    # GPUs of one host read its files once: filling memory that they share takes longer than their messages. The
    # ranks have to agree, for a disk may show one of them the others' files late.
    shares = all(group.each(has_cuda() and len(group.disk) == group.size))
    try:
        upper.load(group if shares else ALONE)
        started = perf_counter()
        inputs.written()
        waited = perf_counter() - started
    except BaseException:
        inputs.abandon()  # or the process would not end before all states are looked at
        raise
    mx.clear_cache()  # what held the states
    return upper, waited


def _announce(folder: Path) -> None:
    """Say where this run starts and others have been, and drop the checkpoints of all but the latest few runs."""
    mine = checkpoint.steps(folder)
    runs = [path for path in checkpoint.ROOT.iterdir() if path.is_dir() and path != folder]
    others = sum(bool(checkpoint.steps(path)) for path in runs)
    if others and not mine:
        print(f"starting fresh: the checkpoints in {checkpoint.ROOT} are of {others} other run{'s' * (others > 1)}")
    for path in sorted(runs, key=_modified)[: 1 - checkpoint.KEPT]:
        there = checkpoint.steps(path)
        # One that goes on keeps its checkpoints, and so does one that may not be touched.
        with suppress(Timeout, OSError), FileLock(path / "lock", timeout=0):
            shutil.rmtree(path, ignore_errors=True)
        if there and not path.exists():
            print(f"dropped the checkpoints of an earlier run, {path.name}")


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another run drops old ones, too
        return 0.0


def _published_name(name: str, frozen: int) -> str:
    """`model.model.layers.2.…` of the upper part -> `model.layers.18.…` of the whole model."""
    parts = name.split(".")[1:]
    parts[2] = str(int(parts[2]) + frozen)
    return ".".join(parts)
