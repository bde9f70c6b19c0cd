"""What goes into the trained part of a model: stored states of the frozen layers, or tokens if there are none."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlora.mlx import mx

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from sqlora.distributed.group import Group
from sqlora.errors import SqloraError
from sqlora.params.train import TrainParams
from sqlora.tokenizer import Encoded
from sqlora.train import checkpoint
from sqlora.train.buckets import MOST_PADDING, choose_lengths, used_examples
from sqlora.train.division import used_by
from sqlora.train.loss import Fetch
from sqlora.train.shared_pass import fill_together
from sqlora.train.states import ROOT, StateStore, key_of, make_room
from sqlora.train.upper import fill_store, state_dtype

# Padding costs little here, and a GPU takes a tenth of a second to get ready for each new shape.
_FROZEN_PADDING = 0.1
LOCK_SECONDS = 15.0  # an earlier trainer whose dvc was killed notices within a second and a step


@dataclass(frozen=True)
class Inputs:
    """fetcher: examples -> what gives their inputs; token_bytes: of one token's input; computed, reused: examples whose
    states were computed, and were there; settle: waits until they are on the disk.
    """

    fetcher: Callable[[Sequence[Encoded]], Fetch]
    token_bytes: int
    computed: int
    reused: int
    settle: Callable[[], None]


def prepare_inputs(
    model: Path,
    config: dict[str, Any],
    frozen: int,
    buckets: Sequence[int],
    train: Sequence[Encoded],
    valid: Sequence[Encoded],
    weights: str,
    params: TrainParams,
    group: Group,
) -> Inputs:
    """Run the frozen layers over the examples that a run will use, as far as no earlier run has.

    Args:
        model: folder of the converted model; config: its config.json; weights: its identity.
        frozen: number of layers; with 0 the model's inputs are tokens.
        buckets: lengths of training's batches.

    Raises:
        SqloraError: no room on the disk.
    """
    if not frozen:
        return Inputs(_tokens, 4, 0, 0, lambda: None)
    steps = params.iterations * params.gradient_accumulation
    train_lengths = [len(example.tokens) - 1 for example in train]
    if len(group.disk) == group.size:
        used = used_examples(steps, train_lengths, buckets, params.batch_size, params.seed)
    else:  # this machine keeps what its own ranks will use
        plan = (params.iterations, params.gradient_accumulation, train_lengths, buckets, params.batch_size, params.seed)
        used = used_by(group.disk, group.size, *plan)
    wanted = [example.tokens[:-1] for example in (*(train[index] for index in used), *valid)]
    width, dtype = config["hidden_size"], state_dtype(config)
    lengths = lengths_of([*train, *valid], most_padding=_FROZEN_PADDING)
    # The lengths belong to the name: padded to others, states differ in their last bits.
    name = checkpoint.fingerprint(
        {"model": weights, "frozen": frozen, "buckets": list(lengths), "device": str(mx.default_device())}
    )
    needed = sum(map(len, wanted)) * width * np.dtype(dtype).itemsize
    if group.rank == group.disk[0]:
        _require_room(needed, params.states_gb)
        (ROOT / name).mkdir(exist_ok=True)
        dropped = make_room(ROOT, ROOT / name, int(params.states_gb * 1e9) - needed)
        if dropped:
            print(f"dropped the states of {len(dropped)} earlier settings to make room")
    group.barrier()
    (ROOT / name).mkdir(parents=True, exist_ok=True)
    with lock_if(ROOT / name / f"lock-{group.rank}", group.size > 1):  # a rank of a killed run may not be gone yet
        store = StateStore(ROOT / name, width, dtype, part=group.rank)
        computed = fill_together(
            store, wanted, lengths, group, lambda share: fill_store(store, model, frozen, share, lengths)
        )
    distinct = len({key_of(tokens) for tokens in wanted})
    print(f"frozen layers: {computed:,} examples computed, {distinct - computed:,} reused, {needed / 1e9:.2f} GB")

    def stored(examples: Sequence[Encoded]) -> Fetch:
        keys = [key_of(example.tokens[:-1]) for example in examples]
        return lambda chosen, length: store.read([keys[index] for index in chosen], length)

    return Inputs(stored, width * np.dtype(dtype).itemsize, computed, distinct - computed, store.settle)


def _tokens(examples: Sequence[Encoded]) -> Fetch:
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


def lengths_of(examples: Sequence[Encoded], most_padding: float = MOST_PADDING) -> tuple[int, ...]:
    """Lengths of batches for these examples; see choose_lengths."""
    return choose_lengths([len(example.tokens) - 1 for example in examples], most_padding)


def lock_if(path: Path, wanted: bool) -> AbstractContextManager[Any]:
    """The lock if it is wanted, or nothing."""
    return FileLock(path, timeout=LOCK_SECONDS) if wanted else nullcontext()
