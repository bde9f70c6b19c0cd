"""The frozen pass divided between ranks: those that see the same disk compute a share each and read the others'."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlora.distributed.group import Group
from sqlora.train.buckets import bucket_of
from sqlora.train.states import Place, StateStore, key_of
from sqlora.train.upper import rows_of

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


@dataclass
class Filling:
    """computed: how many examples the ranks of this disk have computed; finish: to be called by all of them before the
    store is read.
    """

    computed: int
    finish: Callable[[], None]


def fill_together(
    store: StateStore, wanted: Sequence[Sequence[int]], buckets: Sequence[int], group: Group, fill: Fill
) -> Filling:
    """Let the store hold the wanted examples, for every rank that sees its disk.

    A rank takes some of the batches of what is missing, sorted by length. It then has few lengths; each costs a GPU
    some time when it is first met. `finish` waits until they are written and hears where the others' lie; until then
    the caller can do other things. What is lacking then, because the disk was not shared after all or shows others'
    files late, each rank computes by itself, with two layers beside whatever is in memory.

    Args:
        wanted: what goes into the model, the same on all ranks of one disk.
        fill: computes the examples that the store lacks of those it gets; returns how many these were.

    Returns:
        The count so far, which `finish` may raise.
    """

    def fill_share(peers: Sequence[int]) -> bool:
        """Whether any rank lacked some."""
        group.barrier()  # every store of this disk is open and mended
        store.refresh()
        missing = list({key_of(tokens): tuple(tokens) for tokens in wanted if key_of(tokens) not in store}.items())
        if not sum(group.each(len(missing))):
            return False
        missing.sort(key=lambda item: (bucket_of(len(item[1]), buckets), item[0]))
        group.barrier()  # before anyone adds to it, all have looked
        sizes = [bucket_of(len(tokens), buckets) for _, tokens in missing]
        bounds = bounds_of(sizes, len(peers))[peers.index(group.rank) :]
        every = group.each(fill([tokens for _, tokens in missing[bounds[0] : bounds[1]]]))
        filling.computed += int(sum(every[rank] for rank in group.disk))
        return True

    def finish() -> None:
        if group.size > 1 and some_lacked:
            # By a message: what the index says has come to the disk, and that takes longer than to write the files.
            added: list[Any] = group.gather([[asdict(place), tail] for place, tail in store.added()])
            store.learn((Place(**place), tail) for rank in group.disk for place, tail in added[rank])
            fill_share([group.rank])

    filling = Filling(0, finish)
    some_lacked = fill_share(group.disk)
    return filling


def bounds_of(lengths: Sequence[int], parts: int) -> list[int]:
    """Where to cut, so that parts of about as many padded tokens come out and no batch is cut in two, but by a wave's
    end; from 0 to the end.

    Args:
        lengths: of examples as they are padded, in rising order.
    """
    starts, tokens = [0], [0]  # of batches, and before them; the last is the end
    while starts[-1] < len(lengths):
        length = lengths[starts[-1]]
        starts.append(min(starts[-1] + rows_of(length), bisect_right(lengths, length, starts[-1])))
        tokens.append(tokens[-1] + rows_of(length) * length)  # as many, however many examples a batch has
    wanted = (tokens[-1] * part / parts for part in range(parts + 1))
    return [starts[min(range(len(starts)), key=lambda at: abs(tokens[at] - one))] for one in wanted]
