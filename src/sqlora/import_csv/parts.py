"""Shares whole tables out to the parts train, dev and test."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from sqlora.errors import SqloraError
from sqlora.wikisql.layout import PARTS

Shares = tuple[float, float, float]


def check_shares(shares: Shares) -> None:
    """Raise SqloraError unless all three are positive, finite numbers; their sum may be any."""
    if len(shares) != 3 or not all(0 < share < float("inf") for share in shares):
        raise SqloraError(
            "--shares",
            found=",".join(f"{share:g}" for share in shares),
            expected=f"three numbers above 0, for {', '.join(PARTS)}",
            next_step="Write for example --shares 80,10,10.",
        )


def share_out(
    where: object, counts: Mapping[str, int], pins: Mapping[str, str], shares: Shares, seed: int
) -> list[str]:
    """Give each table to one part, so that the parts' questions come near their shares and no part is empty.

    Large tables are placed first, in the order of hashes among those of about one size: the result is the same in
    every Python version. Each goes to the part that lacks the largest part of its share and has room for the whole
    table, or to the one with the most room. Pinned tables are placed before all others.

    Args:
        where: what errors name.
        counts: table id -> its number of questions, at least 1.
        pins: table id -> its part, for the tables that have no choice.
        shares: of train, dev and test, in questions.

    Returns:
        The part of each table, in the order of `counts`.

    Raises:
        SqloraError: if there are too few tables.
    """
    check_shares(shares)
    total = sum(counts.values())
    targets = {part: total * share / sum(shares) for part, share in zip(PARTS, shares, strict=True)}
    room = dict(targets)
    placed: dict[str, str] = {}

    def place(table: str, part: str) -> None:
        placed[table] = part
        room[part] -= counts[table]

    for table, part in pins.items():
        place(table, part)
    free = sorted(counts.keys() - pins.keys(), key=lambda table: (-counts[table].bit_length(), _key(seed, table)))
    empty = [part for part in PARTS if part not in placed.values()]
    if len(free) < len(empty):
        pinned = f", {len(pins)} of them pinned to a part" * bool(pins)
        raise SqloraError(
            where,
            found=f"questions about {len(counts)} tables{pinned}, which leaves {' and '.join(empty)} without one",
            expected="at least 3 tables with questions, because no table may be in two parts"
            if not pins
            else f"at least {len(empty)} tables with questions that are not pinned, one for each empty part",
            next_step="Add questions about other tables" + ", or pin fewer tables." * bool(pins) + "." * (not pins),
        )
    for position, table in enumerate(free):
        among = empty if len(free) - position <= len(empty) else list(PARTS)
        fitting = [part for part in among if counts[table] <= room[part] + 1e-9 * total]
        part = max(fitting, key=lambda p: room[p] / targets[p]) if fitting else max(among, key=room.__getitem__)
        place(table, part)
        empty = [part for part in empty if part != placed[table]]
    return [placed[table] for table in counts]


def _key(seed: int, table: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{table}".encode()).digest()
