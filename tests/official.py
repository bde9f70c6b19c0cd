"""WikiSQL's official evaluation, written anew from what salesforce/WikiSQL's evaluate.py and lib/ do.

It shares no code with sqlora, so that the two can be held against each other. It differs from the original in the
libraries alone: sqlite3 for records, decimal for babel's parse_decimal in the en_US locale.
"""

from __future__ import annotations

import decimal
import json
import re
import sqlite3
from pathlib import Path
from typing import Any

AGGREGATES = ["", "MAX", "MIN", "COUNT", "SUM", "AVG"]
OPERATORS = ["=", ">", "<", "OP"]


def evaluate(source: Path, database: Path, predictions: Path) -> tuple[list[bool], list[bool]]:
    """Per question whether the execution, and whether the logical form, is right."""
    connection = sqlite3.connect(database)
    execution, logical_form = [], []
    with open(source, encoding="utf-8") as questions, open(predictions, encoding="utf-8") as answers:
        for question_line, answer_line in zip(questions, answers, strict=True):
            question, answer = json.loads(question_line), json.loads(answer_line)
            gold = _run(connection, question["table_id"], question["sql"])
            predicted: Any = answer.get("error")
            query = None
            if not answer.get("error"):
                query = answer["query"]
                try:
                    predicted = _run(connection, question["table_id"], query)
                except Exception as error:  # noqa: BLE001 - as the original does
                    predicted = repr(error)
            execution.append(predicted == gold)
            logical_form.append(query is not None and _key(query) == _key(question["sql"]))
    connection.close()
    return execution, logical_form


def _key(query: dict[str, Any]) -> tuple[int, int, set[tuple[int, int, str]]]:
    return query["sel"], query["agg"], {(col, op, str(value).lower()) for col, op, value in query["conds"]}


def _run(connection: sqlite3.Connection, table_id: str, query: dict[str, Any]) -> list[Any]:
    table = table_id if table_id.startswith("table") else "table_" + table_id.replace("-", "_")
    ((sql,),) = connection.execute("SELECT sql FROM sqlite_master WHERE tbl_name = ?", (table,)).fetchall()
    kinds = dict(part.split() for part in re.findall(r"\((.+)\)", sql)[0].split(", "))
    selected = f"col{query['sel']}"
    if query["agg"]:
        selected = f"{AGGREGATES[query['agg']]}({selected})"
    clauses, bound = [], {}
    for column, operator, value in query["conds"]:
        name = f"col{column}"
        if isinstance(value, str):
            value = value.lower()
            if kinds[name] == "real":
                try:
                    value = float(decimal.Decimal(value.replace(",", "")))
                except decimal.InvalidOperation:
                    value = float(re.findall(r"[-+]?\d*\.\d+|\d+", value)[0])
        clauses.append(f"{name} {OPERATORS[operator]} :{name}")
        bound[name] = value
    where = f" WHERE {' AND '.join(clauses)}" if clauses else ""
    return [row[0] for row in connection.execute(f"SELECT {selected} AS result FROM {table}{where}", bound)]
