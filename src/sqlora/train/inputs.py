"""What goes into the trained part of a model: stored states of the frozen layers, or tokens if there are none."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
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
from sqlora.errors import SqloraError
from sqlora.params.train import TrainParams
from sqlora.tokenizer import Encoded
from sqlora.train import checkpoint
from sqlora.train.buckets import FROZEN_PADDING, MOST_PADDING, choose_lengths, used_examples
from sqlora.train.division import used_by
from sqlora.train.loss import Fetch
from sqlora.train.shared_pass import drop_damaged_together, fill_together
from sqlora.train.states import ENTRY_BYTES, FORMAT, ROOT, Place, StateStore, bytes_of, key_of, lock_of, make_room
from sqlora.train.upper import fill_store, state_dtype

LOCK_SECONDS = 15.0  # an earlier trainer whose dvc was killed notices within a second and a step


@dataclass(frozen=True)
class Inputs:
    """fetcher: examples -> what gives their inputs; token_bytes: of one token's input; computed, reused: examples whose
    states were computed, and were there; written: waits until they are in the files, settle until they are on the disk.
    sound: whether stored states are what was stored, once that is known; if not, the inputs are to be prepared again;
    abandon: nobody will ask.
    """

    fetcher: Callable[[Sequence[Encoded]], Fetch]
    token_bytes: int
    computed: int
    reused: int
    written: Callable[[], None]
    settle: Callable[[], None]
    sound: Callable[[], bool] = lambda: True
    abandon: Callable[[], None] = lambda: None


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
    stop: Callable[[], bool] = lambda: False,
    check_later: bool = False,
) -> Inputs:
    """Run the frozen layers over the examples that a run will use, as far as no earlier run has.

    Args:
        model: folder of the converted model; config: its config.json; weights: its identity.
        frozen: number of layers; with 0 the model's inputs are tokens.
        buckets: lengths of training's batches.
        stop: whether this rank was asked to end.
        check_later: of a process alone whose states are all there, a thread compares them with their checksums, and
            the caller asks `sound` before it uses them.

    Raises:
        SqloraError: no room on the disk.
        Interrupted: `stop` said so.
    """
    if not frozen:
        return Inputs(_tokens, 4, 0, 0, lambda: None, lambda: None)
    steps = params.iterations * params.gradient_accumulation
    train_lengths = [len(example.tokens) - 1 for example in train]
    if len(group.disk) == group.size:
        used = used_examples(steps, train_lengths, buckets, params.batch_size, params.seed)
    else:  # this machine keeps what its own ranks will use
        plan = (params.iterations, params.gradient_accumulation, train_lengths, buckets, params.batch_size, params.seed)
        used = used_by(group.disk, group.size, *plan)
    wanted = [example.tokens[:-1] for example in (*(train[index] for index in used), *valid)]
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
    part, lock = _free_part(ROOT / name, group)
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
            shrunk = _make_room(store, distinct, params.states_gb, [parts[rank] for rank in group.disk])
        if group.each(shrunk)[group.disk[0]] and not first:  # all wait here until there is room
            store.reopen()
    computed = fill_together(
        store, wanted, lengths, group, lambda share: fill_store(store, model, frozen, share, lengths, stop)
    )
    reused = max(0, len(distinct) - computed)  # ranks whose disk is not shared after all compute some of them twice
    size = sum(distinct.values()) * store.row_bytes

    def tell() -> None:
        print(f"frozen layers: {computed:,} examples computed, {reused:,} reused, {size / 1e9:.2f} GB")

    if checking is None:
        tell()

    def stored(examples: Sequence[Encoded]) -> Fetch:
        keys = [key_of(example.tokens[:-1]) for example in examples]
        return lambda chosen, length: store.read([keys[index] for index in chosen], length)

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

    return Inputs(stored, store.row_bytes, computed, reused, store.wait, settle, sound, ended.set)


def _free_part(folder: Path, group: Group) -> tuple[int, FileLock]:
    """The number of a part that no other process adds to, and its lock, to be held until the last state is settled.

    Runs of the same base with other settings share a store, and may run at the same time.
    """
    with lock_of(folder.parent):  # nobody deletes the store between these
        folder.mkdir(parents=True, exist_ok=True)
        for part in count(group.rank, group.size):
            lock = FileLock(folder / f"lock-{part}", timeout=0)
            try:
                lock.acquire()
            except Timeout:
                continue
            return part, lock
    raise AssertionError("there is always another number")


def _make_room(store: StateStore, wanted: Mapping[str, int], states_gb: float, parts: Collection[int]) -> bool:
    """See that the store may have the wanted states, and that the disk has room for those that are missing.

    Args:
        wanted: key of an example -> tokens.
        parts: of this run's processes that have the store open.

    Returns:
        whether the store has lost states, and these processes are to open it again.

    Raises:
        SqloraError: no room.
    """

    def missing() -> int:
        return sum(tokens * store.row_bytes + ENTRY_BYTES for key, tokens in wanted.items() if key not in store)

    needed, most, shrunk = sum(wanted.values()) * store.row_bytes, int(states_gb * 1e9), False
    room = min(most, bytes_of(ROOT) + shutil.disk_usage(ROOT).free)
    if needed <= room:  # a run that needs more is refused, and leaves what others need alone
        limit = room - missing()
        dropped = make_room(ROOT, store.folder, limit)
        if dropped:
            print(f"dropped the states of {len(dropped)} earlier settings to make room")
        if bytes_of(ROOT) > limit:
            shrunk = _shrink(store, wanted, parts)
    free = shutil.disk_usage(ROOT).free
    if needed > most or missing() > free:
        raise SqloraError(
            ROOT,
            found=f"room for {states_gb:g} GB by train.states_gb and {free / 1e9:.1f} GB on the disk",
            expected=f"{needed / 1e9:.3g} GB for the states of the frozen layers, {missing() / 1e9:.3g} of them new",
            next_step="Raise train.states_gb or free some space; with train.states_gb 0 nothing is stored, and each "
            "step computes all layers.",
        )
    return shrunk


def _shrink(store: StateStore, wanted: Mapping[str, int], parts: Collection[int]) -> bool:
    """Take states that are not wanted out of the store, if nobody else uses it; whether it has changed."""
    kept = sum(tokens for key, tokens in wanted.items() if key in store) * store.row_bytes
    if sum(file.stat().st_size for file in store.folder.glob("states-*")) <= kept:
        return False
    free = shutil.disk_usage(ROOT).free
    keys: Collection[str] = wanted
    if kept > free:  # no room for a copy of what stays
        if sum(wanted.values()) * store.row_bytes > free + bytes_of(store.folder):
            return False  # nor for all of it after that: the run is refused
        keys = ()
    try:
        dropped = store.keep_only(keys, parts)
    except OSError:
        keys = ()
        dropped = store.keep_only(keys, parts)
    if dropped is None:
        print(f"{store.folder}: another run uses these states, too; they stay, although train.states_gb is exceeded")
        return False
    examples, size = dropped
    if not keys and kept:
        print(
            f"dropped the states of all {examples:,} examples ({size / 1e9:.2f} GB) to make room: there is none to copy"
            " those that this run uses"
        )
    elif examples:
        print(
            f"dropped the states of {examples:,} examples that this run does not use ({size / 1e9:.2f} GB) to make room"
        )
    return True


def _tokens(examples: Sequence[Encoded]) -> Fetch:
    def fetch(chosen: Sequence[int], length: int) -> NDArray[np.generic]:
        batch = np.zeros((len(chosen), length), dtype=np.int32)
        for row, index in enumerate(chosen):
            batch[row, : len(examples[index].tokens) - 1] = examples[index].tokens[:-1]
        return batch

    return fetch


def lengths_of(examples: Sequence[Encoded], most_padding: float = MOST_PADDING, batch_size: int = 1) -> tuple[int, ...]:
    """Lengths of batches for these examples; see choose_lengths."""
    return choose_lengths([len(example.tokens) - 1 for example in examples], most_padding, batch_size)


def lock_if(path: Path, wanted: bool) -> AbstractContextManager[Any]:
    """The lock if it is wanted, or nothing."""
    return FileLock(path, timeout=LOCK_SECONDS) if wanted else nullcontext()
