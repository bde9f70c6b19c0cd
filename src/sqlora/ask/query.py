"""A logical form as SQL that any SQLite understands."""

from __future__ import annotations

from sqlora.ask.source import quoted
from sqlora.wikisql.form import AGGREGATES, OPERATORS, LogicalForm, Schema


def render_query(form: LogicalForm, table: Schema, name: str) -> str:
    """Names and texts in quotes; texts compare whatever their letter case, as the model was trained to expect.

    Args:
        name: of the table in the database.
    """
    selected = quoted(table.header[form.sel])
    if form.agg:
        selected = f"{AGGREGATES[form.agg]}({selected})"
    sql = f"SELECT {selected} FROM {quoted(name)}"
    for number, (column, operator, value) in enumerate(form.conds):
        word = "AND" if number else "WHERE"
        text = isinstance(value, str) and "'" + value.replace("'", "''") + "' COLLATE NOCASE"
        shown = text or repr(value)
        sql += f" {word} {quoted(table.header[column])} {OPERATORS[operator]} {shown}"
    return sql
