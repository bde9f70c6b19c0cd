"""A logical form as SQL that any SQLite understands."""

from __future__ import annotations

from sqlora.ask.source import quoted
from sqlora.sql.execute import TableRows
from sqlora.wikisql.form import AGGREGATES, OPERATORS, LogicalForm, Value


def render_query(form: LogicalForm, table: TableRows, name: str) -> str:
    """Names and texts in quotes; texts compare whatever their letter case, as the model was trained to expect.

    Args:
        table: whose cells say how a text is spelled: SQLite knows the two cases of the letters from A to Z only.
        name: of the table in the database.
    """
    selected = quoted(table.header[form.sel])
    if form.agg:
        selected = f"{AGGREGATES[form.agg]}({selected})"
    sql = f"SELECT {selected} FROM {quoted(name)}"
    for number, (column, operator, value) in enumerate(form.conds):
        word = "AND" if number else "WHERE"
        spellings = _spellings(value, table, column) if OPERATORS[operator] == "=" else [value]
        if len(spellings) > 1:
            sql += f" {word} {quoted(table.header[column])} IN ({', '.join(map(_literal, spellings))})"
        else:
            collate = " COLLATE NOCASE" if isinstance(value, str) else ""
            sql += f" {word} {quoted(table.header[column])} {OPERATORS[operator]} {_literal(spellings[0])}{collate}"
    return sql


def _spellings(value: Value, table: TableRows, column: int) -> list[Value]:
    """The column's cells that are the same text in whatever letter case, where SQLite would not see it."""
    if not isinstance(value, str) or value.isascii():
        return [value]
    cells = (row[column] for row in table.rows)
    same = {cell for cell in cells if isinstance(cell, str) and cell.lower() == value.lower()}
    return sorted(same) or [value]


def _literal(value: Value) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(value).replace("inf", "9e999")
