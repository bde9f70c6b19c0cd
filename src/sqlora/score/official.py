"""Writes predictions as WikiSQL's official evaluator reads them, so that anybody can run it on ours.

`python evaluate.py test.jsonl tables.db base.jsonl` in a checkout of salesforce/WikiSQL; docs/guides/scoring.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sqlora.jsonl import write_jsonl
from sqlora.score.judge import Verdict
from sqlora.text import Example
from sqlora.wikisql.form import Value


def write_questions(path: Path, examples: Sequence[Example]) -> None:
    """Write the test split in the layout of WikiSQL's PART.jsonl, in the order of the predictions."""
    write_jsonl(
        path,
        (
            {"phase": 1, "table_id": example.table_id, "question": example.question, "sql": example.sql.to_json()}
            for example in examples
        ),
    )


def write_predictions(path: Path, verdicts: Sequence[Verdict]) -> None:
    """Write {"query": {sel, agg, conds}, "error": ""} for each query that was read, {"error": outcome} otherwise."""
    write_jsonl(path, map(_prediction, verdicts))


def _prediction(verdict: Verdict) -> dict[str, object]:
    if verdict.form is None:
        # What was executed as text has run, and yet has no place in this format.
        return {"error": verdict.outcome if verdict.outcome != "ok" else "no logical form"}
    conds = [
        [column, operator, _value(value, literal)]
        for (column, operator, value), literal in zip(verdict.form.conds, verdict.literals, strict=True)
    ]
    # The evaluator asks for the key `error` in every line.
    return {"query": {"sel": verdict.form.sel, "agg": verdict.form.agg, "conds": conds}, "error": ""}


def _value(value: Value, literal: str) -> Value:
    # The evaluator compares what Python prints: `1,000` has to stay a text there.
    return value if str(value) == literal else literal
