"""Gives each prediction a verdict: right or not by four measures, and what went wrong.

The official measures are those of salesforce/WikiSQL's evaluate.py, lib/query.py and lib/dbengine.py (Zhong et al.,
2017), which gives the same figures for the files that sqlora.score.official writes. Two of its habits hide or invent
errors, so each measure has a strict variant beside it:

* It compares rows in the order in which the database returns them, and of two conditions on one column it binds the
  last value to both. Strict execution compares rows regardless of order, under all conditions.
* It compares values as Python prints them, so that 1,000 and 1000 differ. A strict logical form compares numbers as
  numbers.

A prediction that did not stop at EOS is wrong by every measure, whatever it begins with: its outcome is `no_stop`.
One that a constraint closed is a query like any other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sqlora.errors import SqloraError
from sqlora.score.predictions import Prediction
from sqlora.sql.execute import Execution, Failure, Runner, execute, open_database, overwrites
from sqlora.sql.named import execute_text, open_named
from sqlora.sql.parse import Parsed, ParseOutcome, parse_number, parse_sql
from sqlora.sql.sandbox import Sandbox
from sqlora.text import Example, render_sql
from sqlora.wikisql.form import Condition, LogicalForm, Value

Outcome = ParseOutcome | Failure | Literal["no_stop"]
Disagreement = Literal["row_order", "overwritten_condition", "number_form"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one prediction.

    outcome: `ok` (valid SQL) or why not; detail: where reading ended, for people.
    form: what was read, or None; literals: its values as they were written.
    execution, logical_form, strict_execution, strict_logical_form: whether it is right by that measure.
    disagreements: why an official measure and its strict variant differ here, if they do.
    result, gold_result: the selected value of each row, None if nothing ran.
    """

    outcome: Outcome
    gold_result: tuple[Any, ...]
    detail: str = ""
    form: LogicalForm | None = None
    literals: tuple[str, ...] = ()
    execution: bool = False
    logical_form: bool = False
    strict_execution: bool = False
    strict_logical_form: bool = False
    disagreements: tuple[Disagreement, ...] = ()
    result: tuple[Any, ...] | None = None


def judge(
    examples: Sequence[Example], predictions: Sequence[Prediction], db: Path, *, execute_as: str = "form"
) -> list[Verdict]:
    """A verdict for each prediction, in the order of the examples.

    Args:
        db: tables.db of the dataset; opened read-only.
        execute_as: `form` or `text`, as score.execute in params.yaml.

    Raises:
        SqloraError: if the gold query of an example cannot be executed. A wrong prediction never raises.
    """
    verdicts = []
    with open_database(db) as runner, open_named(db, examples) if execute_as == "text" else nullcontext() as texts:
        for index, (example, prediction) in enumerate(zip(examples, predictions, strict=True)):
            gold = execute(example.sql, example, runner)
            if gold.failure:
                raise SqloraError(
                    db,
                    found=f"a gold query that fails ({gold.failure}): {render_sql(example.sql, example)}",
                    expected=f"test question {index} to be answered by its own query",
                    next_step="Mend the question in the data's source, or run dvc repro to draw the split again.",
                )
            verdicts.append(_verdict(example, prediction, gold, runner, texts))
    return verdicts


def official_form(left: LogicalForm, literals: Sequence[str], gold: LogicalForm) -> bool:
    """Whether the official evaluator takes a prediction for the gold query.

    Args:
        literals: the prediction's values as they were written.
    """
    written = {
        (column, operator, literal.lower()) for (column, operator, _), literal in zip(left.conds, literals, strict=True)
    }
    wanted = {(column, operator, str(value).lower()) for column, operator, value in gold.conds}
    return (left.sel, left.agg) == (gold.sel, gold.agg) and written == wanted


def strict_form(left: LogicalForm, right: LogicalForm, types: Sequence[str]) -> bool:
    """Whether two forms over one table are the same query.

    Conditions are compared as a set, texts in lower case, and beside a `real` column 7, 7.0 and "7" are one value.
    """

    def conditions(form: LogicalForm) -> set[Condition]:
        return {(column, operator, comparable(value, types[column])) for column, operator, value in form.conds}

    return (left.sel, left.agg) == (right.sel, right.agg) and conditions(left) == conditions(right)


def comparable(value: Value, kind: str) -> Value:
    """A value of a column of type `kind` such that equal values compare equal."""
    number = parse_number(str(value)) if kind == "real" else None
    return str(value).lower() if number is None else number


def shorten(result: tuple[Any, ...] | None, width: int = 80) -> str:
    """The first values of a result and how many there are, in at most about `width` characters; empty if none ran."""
    if result is None:
        return ""
    shown = ", ".join("NULL" if value is None else str(value) for value in result[:width])
    return shown if len(shown) <= width else f"{shown[:width]}… ({len(result)} rows)"


def _verdict(
    example: Example, prediction: Prediction, gold: Execution, runner: Runner, texts: Sandbox | None
) -> Verdict:
    if not prediction.stopped and not prediction.closed:
        return Verdict("no_stop", gold.rows, f"after {prediction.tokens} tokens")
    if prediction.completion.strip() == example.completion.strip():
        # The gold query to the letter is right, even where its text could be read in another way or not at all.
        parsed = Parsed("ok", example.sql, literals=tuple(str(value) for _, _, value in example.sql.conds))
    else:
        parsed = parse_sql(prediction.completion, example.table_id, example.header, example.types)
    if parsed.form is None:
        verdict = Verdict(parsed.outcome, gold.rows, parsed.detail)
        # Where the text is no SQL either, the parser has the better reason.
        result = execute_text(prediction.completion, example, texts) if texts else None
        return _compare_text(verdict, gold, result) if result and not result.failure else verdict
    return _compare(example, parsed, parsed.form, gold, runner)


def _compare_text(verdict: Verdict, gold: Execution, result: Execution) -> Verdict:
    execution, strict = result.rows == gold.rows, Counter(result.rows) == Counter(gold.rows)
    return replace(
        verdict,
        outcome="ok",
        detail="",
        execution=execution,
        strict_execution=strict,
        disagreements=("row_order",) if execution != strict else (),
        result=result.rows,
    )


def _compare(example: Example, parsed: Parsed, form: LogicalForm, gold: Execution, runner: Runner) -> Verdict:
    logical_form = official_form(form, parsed.literals, example.sql)
    strict_logical_form = strict_form(form, example.sql, example.types)
    result = execute(form, example, runner)
    disagreements: list[Disagreement] = []
    if logical_form != strict_logical_form:
        disagreements.append("number_form")
    execution = strict_execution = False
    if not result.failure:
        execution = result.rows == gold.rows
        # The strict queries are other ones only where the official engine overwrites a condition.
        overwritten = overwrites(form) or overwrites(example.sql)
        strict, strict_gold = (
            (execute(form, example, runner, strict=True), execute(example.sql, example, runner, strict=True))
            if overwritten
            else (result, gold)
        )
        strict_execution = not strict.failure and Counter(strict.rows) == Counter(strict_gold.rows)
        if execution != strict_execution:
            disagreements.append("overwritten_condition" if overwritten else "row_order")
    return Verdict(
        result.failure or "ok",
        gold.rows,
        form=form,
        literals=parsed.literals,
        execution=execution,
        logical_form=logical_form,
        strict_execution=strict_execution,
        strict_logical_form=strict_logical_form,
        disagreements=tuple(disagreements),
        result=None if result.failure else result.rows,
    )
