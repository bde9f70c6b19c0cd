"""WikiSQL's logical form: one aggregate over one column of one table, under conditions that all hold.

The form is that of Zhong, Xiong and Socher, "Seq2SQL" (2017). Training and generation depend on this module, so
reading of tables and questions lives elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlora.errors import SqloraError

Value = str | int | float
Condition = tuple[int, int, Value]

AGGREGATES = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")
OPERATORS = ("=", ">", "<")
TYPES = ("text", "real")


@dataclass(frozen=True, slots=True)
class LogicalForm:
    """sel: index of the selected column; agg: index into AGGREGATES; conds: (column, index into OPERATORS, value)."""

    sel: int
    agg: int
    conds: tuple[Condition, ...]

    def to_json(self) -> dict[str, Any]:
        """The form as WikiSQL writes it."""
        return {"sel": self.sel, "agg": self.agg, "conds": [list(condition) for condition in self.conds]}


class Schema(Protocol):
    """What rendering needs to know of a table; types[i] is `text` or `real` and belongs to header[i]."""

    @property
    def id(self) -> str: ...
    @property
    def header(self) -> tuple[str, ...]: ...
    @property
    def types(self) -> tuple[str, ...]: ...


def read_form(where: str, sql: Any, columns: int, next_step: str) -> LogicalForm:
    """Turn the JSON of a logical form over a table of `columns` columns into a LogicalForm, or raise SqloraError."""

    def index(value: Any, size: int, name: str) -> int:
        if type(value) is not int or not 0 <= value < size:
            raise SqloraError(
                where, found=f"{name} {value!r}", expected=f"a whole number from 0 to {size - 1}", next_step=next_step
            )
        return value

    if not isinstance(sql, dict) or not isinstance(sql.get("conds"), list):
        raise SqloraError(
            where, found=f"sql {sql!r:.80}", expected="an object with sel, agg and a list conds", next_step=next_step
        )
    conds: list[Condition] = []
    infinite = (float("inf"), float("-inf"))  # what Python makes of 1e999
    for condition in sql["conds"]:
        bad = not isinstance(condition, list) or len(condition) != 3
        if bad or type(condition[2]) not in (str, int, float) or condition[2] in infinite:
            raise SqloraError(
                where,
                found=f"condition {condition!r:.80}",
                expected="[column, operator, value], the value a text or a number",
                next_step=next_step,
            )
        column = index(condition[0], columns, "condition column")
        conds.append((column, index(condition[1], len(OPERATORS), "operator"), condition[2]))
    return LogicalForm(
        index(sql.get("sel"), columns, "sel"), index(sql.get("agg"), len(AGGREGATES), "agg"), tuple(conds)
    )


def read_texts(where: str, record: dict[str, Any], names: Sequence[str], next_step: str) -> list[str]:
    """The values of keys that must hold texts, or SqloraError."""
    for name in names:
        if not isinstance(record.get(name), str):
            found = f"{name} {record[name]!r:.80}" if name in record else f"no key {name}"
            raise SqloraError(where, found=found, expected=f"a text under {name}", next_step=next_step)
    return [record[name] for name in names]


def read_columns(where: str, record: dict[str, Any], next_step: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The `header` and `types` of a record, of the same length and not empty, or SqloraError."""
    header, types = record.get("header"), record.get("types")
    if not isinstance(header, list) or not header or not all(isinstance(name, str) for name in header):
        raise SqloraError(
            where, found=f"header {header!r:.80}", expected="a list of at least one column name", next_step=next_step
        )
    if not isinstance(types, list) or len(types) != len(header) or any(kind not in TYPES for kind in types):
        raise SqloraError(
            where,
            found=f"types {types!r:.80}",
            expected=f"a list of {len(header)}, one for each column, each one of {', '.join(TYPES)}",
            next_step=next_step,
        )
    # Column types repeat a hundred thousand times: one shared object each instead of one a line.
    return tuple(header), tuple(TYPES[TYPES.index(kind)] for kind in types)
