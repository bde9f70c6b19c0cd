"""Random logical forms over a table that have an answer and make sense to ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from sqlora.demo_data.conditions import ABOVE, BELOW, EQUAL, Condition
from sqlora.demo_data.schema import Cell
from sqlora.demo_data.tables import DemoTable

NONE, MAX, MIN, COUNT, SUM, AVG = range(6)  # WikiSQL's order

# WikiSQL's own shares, with the rare ones raised a little so that a test of a few hundred questions has them all.
_AGGREGATE_SHARES = (0.68, 0.065, 0.065, 0.10, 0.045, 0.045)
_CONDITION_SHARES = (0.02, 0.64, 0.25, 0.065, 0.025)


@dataclass(frozen=True)
class LogicalForm:
    """WikiSQL's `sql`: selected column, aggregate, conditions joined by AND."""

    sel: int
    agg: int
    conds: tuple[Condition, ...]

    def record(self) -> dict[str, object]:
        return {"sel": self.sel, "conds": [list(condition) for condition in self.conds], "agg": self.agg}


def draw_form(rng: Random, table: DemoTable) -> LogicalForm:
    """A logical form that at least one row of the table satisfies: all conditions are true of one drawn row."""
    agg = weighted(rng, _AGGREGATE_SHARES)
    amount = weighted(rng, _CONDITION_SHARES)
    sel = _selected(rng, table, agg)
    if sel is None:
        agg, sel = NONE, rng.randrange(len(table.columns))
    if agg == NONE and amount == 0 and rng.random() < 0.5:
        amount = 1  # "list every director" is rare; most questions without a condition aggregate
    row = rng.choice(table.rows)
    candidates = [i for i in range(len(table.columns)) if i != sel]
    rng.shuffle(candidates)
    conds: list[Condition] = []
    for index in candidates:
        if len(conds) == amount:
            break
        column = table.columns[index]
        if column.kind == "name" and (agg != NONE or (amount > 1 and rng.random() < 0.7)):
            continue  # the highest price of one book is no question
        if agg != NONE and column.kind in ("date", "code") and rng.random() < 0.8:
            continue
        if (
            amount == 1
            and agg == NONE
            and column.kind != "name"
            and rng.random() < 0.12
            and table.columns[sel].kind != "name"
        ):
            index = next((i for i in candidates if table.columns[i].kind == "name"), index)
        conds.append(_condition(rng, table, index, row[index], agg))
    return LogicalForm(sel, agg, tuple(conds))


def weighted(rng: Random, shares: Sequence[float]) -> int:
    """An index drawn with the given probabilities (random.choices would do, but promises less across versions)."""
    draw = rng.random() * sum(shares)
    for index, share in enumerate(shares):
        draw -= share
        if draw < 0:
            return index
    return len(shares) - 1


def _selected(rng: Random, table: DemoTable, agg: int) -> int | None:
    kinds = [column.kind for column in table.columns]
    if agg in (MAX, MIN):
        suitable = [i for i, column in enumerate(table.columns) if column.real]
    elif agg in (SUM, AVG):
        allowed = ("count", "measure") if agg == SUM else ("count", "measure", "number")
        suitable = [i for i, kind in enumerate(kinds) if kind in allowed]
    else:
        suitable = list(range(len(kinds)))
        if "name" in kinds and rng.random() < (0.6 if agg == COUNT else 0.15):
            return kinds.index("name")
    return rng.choice(suitable) if suitable else None


def _condition(rng: Random, table: DemoTable, index: int, cell: Cell, agg: int) -> Condition:
    column = table.columns[index]
    if not column.real or isinstance(cell, str) or rng.random() > (0.65 if agg else 0.4):
        return index, EQUAL, cell
    others = [row[index] for row in table.rows]
    numbers = sorted({float(other): other for other in others if not isinstance(other, str)}.items())
    below = [other for key, other in numbers if key < cell]
    above = [other for key, other in numbers if key > cell]
    operator = ABOVE if rng.random() < 0.5 else BELOW
    if not (below if operator == ABOVE else above):
        operator = BELOW if operator == ABOVE else ABOVE
    thresholds = below if operator == ABOVE else above
    if not thresholds:
        return index, EQUAL, cell
    threshold = rng.choice(thresholds)
    if isinstance(threshold, int) and isinstance(cell, int) and abs(threshold) >= 40 and rng.random() < 0.45:
        # People ask with round numbers that are in no cell. It must stay on the drawn row's other side.
        unit = 10 if column.kind == "year" else 10 ** (len(str(abs(threshold))) - 1)
        rounded = threshold // unit * unit + (unit if operator == BELOW and threshold % unit else 0)
        if (rounded < cell) if operator == ABOVE else (rounded > cell):
            threshold = rounded
    return index, operator, threshold
