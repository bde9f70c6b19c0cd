"""Room for the states that a run uses: train.states_gb is a limit, and the disk has another."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping

from sqlora.errors import SqloraError
from sqlora.train.states import ENTRY_BYTES, StateStore
from sqlora.train.stores import ROOT, bytes_of, make_room


def see_to_room(
    store: StateStore,
    wanted: Mapping[str, int],
    states_gb: float,
    parts: Collection[int],
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """See that the store may have the wanted states, and that the disk has room for those that are missing.

    Args:
        wanted: key of an example -> tokens.
        parts: of this run's processes that have the store open.
        stop: whether this process was asked to end.

    Returns:
        whether the store has lost states, and these processes are to open it again.

    Raises:
        SqloraError: no room.
        Interrupted: `stop` said so.
    """

    def missing() -> int:
        return sum(tokens * store.row_bytes + ENTRY_BYTES for key, tokens in wanted.items() if key not in store)

    needed, most, shrunk = sum(wanted.values()) * store.row_bytes, int(states_gb * 1e9), False
    room = min(most, bytes_of(ROOT) + shutil.disk_usage(ROOT).free)
    if needed <= room:  # a run that needs more is refused, and leaves what others need alone
        limit = room - missing()
        dropped = make_room(ROOT, store.folder, limit, stop)
        if dropped:
            print(f"dropped the states of {len(dropped)} earlier settings to make room")
        if bytes_of(ROOT) > limit:
            shrunk = _shrink(store, wanted, parts, stop)
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


def _shrink(store: StateStore, wanted: Mapping[str, int], parts: Collection[int], stop: Callable[[], bool]) -> bool:
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
        dropped = store.keep_only(keys, parts, stop)
    except OSError:
        keys = ()
        dropped = store.keep_only(keys, parts, stop)
    if dropped is None:
        print(f"{store.folder}: another run uses these states, too; they stay, although there is no room for them")
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
