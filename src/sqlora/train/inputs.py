"""What goes into the trained part of a model: stored states of the frozen layers, or tokens if there are none."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any

from sqlora.mlx import mx

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from sqlora.distributed.group import Group
from sqlora.params.train import TrainParams
from sqlora.tokenizer import Encoded
from sqlora.train import checkpoint
from sqlora.train.batching import batching_of, used
from sqlora.train.buckets import FROZEN_PADDING, MOST_PADDING, choose_lengths
from sqlora.train.loss import Fetch
from sqlora.train.room import see_to_room
from sqlora.train.shared_pass import drop_damaged_together, fill_together
from sqlora.train.states import FORMAT, Place, StateStore, key_of
from sqlora.train.stores import QUIET_SECONDS, ROOT, bytes_of, held
from sqlora.train.upper import fill_store, state_dtype

LOCK_SECONDS = 15.0  # an earlier trainer whose dvc was killed notices within a second and a step


@dataclass(frozen=True)
class Inputs:
    """fetcher: examples -> what gives their inputs; token_bytes: of one token's input; written: waits until they are in
    the files, those that other ranks write, too, and settle until they are on the disk; counts: of examples whose
    states were computed, and were there, once they are written. sound: whether stored states are what was stored, once
    that is known; if not, the inputs are to be prepared again; abandon: nobody will ask.
    """

    fetcher: Callable[[Sequence[Encoded]], Fetch]
    token_bytes: int
    counts: Callable[[], tuple[int, int]]
    written: Callable[[], None]
    settle: Callable[[], None]
    sound: Callable[[], bool] = lambda: True
    abandon: Callable[[], None] = lambda: None


def prepare_inputs(
    model: Path,
    config: dict[str, Any],
    frozen: int,
    buckets: Sequence[int] | None,
    train: Sequence[Encoded],
    valid: Sequence[Encoded],
    weights: str,
    params: TrainParams,
    group: Group,
    stop: Callable[[], bool] = lambda: False,
    check_later: bool = False,
) -> Inputs:
    """Run the frozen layers over the examples that a run will use, as far as no earlier run has.

    Args:
        model: folder of the converted model; config: its config.json; weights: its identity.
        frozen: number of layers; with 0 the model's inputs are tokens.
        buckets: lengths of training's batches; None if these are packed.
        stop: whether this rank was asked to end.
        check_later: of a process alone whose states are all there, a thread compares them with their checksums, and
            the caller asks `sound` before it uses them.

    Raises:
        SqloraError: no room on the disk.
        Interrupted: `stop` said so.
    """
    if not frozen:
        return Inputs(token_fetcher, 4, lambda: (0, 0), lambda: None, lambda: None)
    # A machine with a disk of its own keeps what its own ranks will use.
    ranks = None if len(group.disk) == group.size else group.disk
    chosen = used(batching_of(train, buckets, params, group.size), params.iterations, len(train), ranks)
    wanted = [example.tokens[:-1] for example in (*(train[index] for index in chosen), *valid)]
    width, dtype = config["hidden_size"], state_dtype(config)
    lengths = lengths_of([*train, *valid], most_padding=FROZEN_PADDING)
    # The lengths belong to the name: padded to others, states differ in their last bits.
    name = checkpoint.fingerprint(
        {
            "model": weights,
            "frozen": frozen,
            "buckets": list(lengths),
            "device": str(mx.default_device()),
            "mlx": metadata.version("mlx"),  # another's kernels may give other bits
            "format": FORMAT,
        }
    )
    part, lock = _free_part(ROOT / name, group, stop)
    store = StateStore(ROOT / name, width, dtype, part=part)
    store.hold(lock)
    distinct = {key_of(tokens): len(tokens) for tokens in wanted}
    checking: Future[list[Place]] | None = None
    ended = threading.Event()
    # With nothing missing and the limit kept there is no room to be made, which would move states under the thread.
    complete = check_later and group.size == 1 and all(key in store for key in distinct)
    if complete and bytes_of(ROOT) <= int(params.states_gb * 1e9):
        background = ThreadPoolExecutor(max_workers=1)
        checking = background.submit(store.damaged, list(distinct), lambda: ended.is_set() or stop())
        background.shutdown(wait=False)
    else:
        drop_damaged_together(store, list(distinct), group)
        parts = group.gather(part)
        first, shrunk = group.rank == group.disk[0], False
        if first:
            shrunk = see_to_room(store, distinct, params.states_gb, [parts[rank] for rank in group.disk], stop)
        if group.each(shrunk)[group.disk[0]] and not first:  # all wait here until there is room
            store.reopen()
    filling = fill_together(
        store, wanted, lengths, group, lambda share: fill_store(store, model, frozen, share, lengths, stop)
    )

    def counts() -> tuple[int, int]:
        # Ranks whose disk is not shared after all compute some of them twice.
        return filling.computed, max(0, len(distinct) - filling.computed)

    def tell() -> None:
        computed, reused = counts()
        size = sum(distinct.values()) * store.row_bytes
        print(f"frozen layers: {computed:,} examples computed, {reused:,} reused, {size / 1e9:.2f} GB")

    def written() -> None:
        store.wait()
        filling.finish()
        store.wait()  # for what that has had to compute
        if checking is None:
            tell()

    def stored(examples: Sequence[Encoded]) -> Fetch:
        keys = [key_of(example.tokens[:-1]) for example in examples]
        return lambda chosen, starts, tokens: store.read([keys[index] for index in chosen], starts, tokens)

    def settle() -> None:
        try:
            store.settle()
        except OSError as error:  # no reason to lose what was trained
            print(
                f"warning: {store.folder}: states of the frozen layers could not be written ({error}); the next run "
                "computes them again. Free some space.",
                file=sys.stderr,
            )
        finally:
            lock.release()

    def sound() -> bool:
        if checking is not None:
            if store.drop(checking.result()):
                return False
            tell()
        return True

    return Inputs(stored, store.row_bytes, counts, written, settle, sound, ended.set)


def _free_part(folder: Path, group: Group, stop: Callable[[], bool]) -> tuple[int, FileLock]:
    """The number of a part that no other process adds to, and its lock, to be held until the last state is settled.

    Runs of the same base with other settings share a store, and may run at the same time.
    """
    with held(folder.parent, stop):  # nobody deletes the store between these
        folder.mkdir(parents=True, exist_ok=True)
        for part in count(group.rank, group.size):
            lock = FileLock(folder / f"lock-{part}", timeout=0)
            try:
                lock.acquire()
            except Timeout:
                continue
            return part, lock
    raise AssertionError("there is always another number")


def token_fetcher(examples: Sequence[Encoded]) -> Fetch:
    """What gives the tokens that go into the model."""

    def fetch(chosen: Sequence[int], starts: Sequence[int], tokens: int) -> NDArray[np.generic]:
        batch = np.zeros(tokens, dtype=np.int32)
        for start, index in zip(starts, chosen, strict=True):
            batch[start : start + len(examples[index].tokens) - 1] = examples[index].tokens[:-1]
        return batch

    return fetch


def lengths_of(examples: Sequence[Encoded], most_padding: float = MOST_PADDING, batch_size: int = 1) -> tuple[int, ...]:
    """Lengths of batches for these examples; see choose_lengths."""
    return choose_lengths([len(example.tokens) - 1 for example in examples], most_padding, batch_size)


@contextmanager
def lock_if(path: Path, wanted: bool) -> Iterator[None]:
    """Hold the lock if it is wanted; says so if another process has it, and waits.

    Raises:
        Timeout: that one does not end.
    """
    if not wanted:
        yield
        return
    lock = FileLock(path)
    try:
        lock.acquire(timeout=QUIET_SECONDS)
    except Timeout:
        print(f"another training of the same inputs is there; waiting {LOCK_SECONDS:.0f} s for its end", flush=True)
        lock.acquire(timeout=LOCK_SECONDS)
    try:
        yield
    finally:
        lock.release()
