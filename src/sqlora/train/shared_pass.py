"""The frozen pass divided between ranks: those that see the same disk compute a share each and read the others'."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from sqlora.distributed.group import Group
from sqlora.train.buckets import bucket_of
from sqlora.train.states import Place, StateStore, key_of

Fill = Callable[[Sequence[Sequence[int]]], int]


def drop_damaged_together(store: StateStore, wanted: Sequence[str], group: Group) -> None:
    """Let the store forget wanted states that are not what was stored, with a warning; each rank of a disk looks at a
    share of them.

    Args:
        wanted: keys of examples, the same on all ranks of one disk.
    """
    group.barrier()  # every store of this disk is open and mended
    store.refresh()
    mine = wanted[group.disk.index(group.rank) :: len(group.disk)]
    found = group.gather([asdict(place) for place in store.damaged(mine)])
    lost = store.drop(Place(**place) for rank in group.disk for place in found[rank])
    if lost:
        print(
            f"warning: {store.folder}: found {len(lost):,} examples' states with other bytes than were stored; they "
            "are computed again. Check the disk.",
            file=sys.stderr,
        )


def fill_together(
    store: StateStore, wanted: Sequence[Sequence[int]], buckets: Sequence[int], group: Group, fill: Fill
) -> int:
    """Let the store hold the wanted examples, for every rank that sees its disk.

    A rank takes every n-th of what is missing, sorted by length. What is lacking afterwards, because the disk was not
    shared after all or shows others' files late, each rank computes by itself.

    Args:
        wanted: what goes into the model, the same on all ranks of one disk.
        fill: computes the examples that the store lacks of those it gets; returns how many these were.

    Returns:
        How many examples the ranks of this disk computed.
    """
    computed = 0
    for peers in (group.disk, [group.rank]) if group.size > 1 else (group.disk,):
        group.barrier()  # every store of this disk is open and mended
        store.refresh()
        missing = list({key_of(tokens): tuple(tokens) for tokens in wanted if key_of(tokens) not in store}.items())
        if not sum(group.each(len(missing))):
            break
        missing.sort(key=lambda item: (bucket_of(len(item[1]), buckets), item[0]))
        group.barrier()  # before anyone adds to it, all have looked
        computed += fill([tokens for _, tokens in missing[peers.index(group.rank) :: len(peers)]])
        if group.size > 1:
            # By a message: what the index says has come to the disk, and that takes longer than to write the files.
            added: list[Any] = group.gather([[asdict(place), tail] for place, tail in store.added()])
            store.learn((Place(**place), tail) for rank in group.disk for place, tail in added[rank])
    every = group.each(computed)
    return int(sum(every[rank] for rank in group.disk))
