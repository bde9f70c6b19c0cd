"""The order in which questions are drawn: whatever its length, a beginning of it is a good sample of the whole."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

from sqlora.wikisql.layout import Question

Stratum = tuple[int, int]  # aggregate, number of conditions


def spread_over_tables(questions: Sequence[Question], seed: int) -> list[int]:
    """An order of all questions in which the first n ask about as many tables as n questions can.

    The tables take turns in a random order. At its turn a table gives that question of its own whose stratum (aggregate
    and number of conditions) is furthest behind its share of all questions, as in Sainte-Laguë's method of allotting
    seats; of equals the one whose hash comes first. A smaller sample is a beginning of a larger one: the 1k set lies
    inside the 10k set of the same seed. Randomness comes from hashes, not from a stream, so it is the same in every
    Python version.

    Returns:
        Indices into `questions`.
    """
    waiting: dict[str, list[tuple[bytes, int]]] = defaultdict(list)
    for index, question in enumerate(questions):
        waiting[question.table_id].append((_key(seed, question.table_id, question.question), index))
    for keyed in waiting.values():
        keyed.sort()
    strata = [(question.sql.agg, len(question.sql.conds)) for question in questions]
    size = Counter(strata)
    drawn: Counter[Stratum] = Counter()
    order: list[int] = []
    turn = sorted(waiting, key=lambda table_id: _key(seed, table_id))
    while turn:
        for table_id in turn:
            # min() takes the first of equals, and the questions of a table stand in the order of their hashes.
            chosen = min(waiting[table_id], key=lambda item: (drawn[strata[item[1]]] + 0.5) / size[strata[item[1]]])
            waiting[table_id].remove(chosen)
            drawn[strata[chosen[1]]] += 1
            order.append(chosen[1])
        turn = [table_id for table_id in turn if waiting[table_id]]
    return order


def _key(seed: int, *names: str) -> bytes:
    return hashlib.sha256("\0".join((str(seed), *names)).encode("utf-8")).digest()
