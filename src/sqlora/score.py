"""Scores predictions: each gets a verdict, the verdicts are counted.

Logical-form and execution accuracy follow salesforce/WikiSQL's evaluate.py, lib/query.py and lib/dbengine.py (Zhong et
al., 2017), with one difference: a prediction that did not stop at EOS is wrong, whatever it begins with. Its outcome
is `no_stop`, and it counts neither for an accuracy nor as valid SQL.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlora.errors import SqloraError
from sqlora.jsonl import read_jsonl
from sqlora.sql.execute import Execution, Failure, Runner, execute, open_database
from sqlora.sql.parse import ParseOutcome, parse_number, parse_sql
from sqlora.text import Example, render_sql, render_value
from sqlora.wikisql.form import Condition, LogicalForm, Value

Outcome = ParseOutcome | Failure | Literal["no_stop"]

ERROR_COLUMNS = (
    "index",
    "table_id",
    "question",
    "gold",
    "gold_result",
    "base",
    "base_outcome",
    "base_result",
    "adapter",
    "adapter_outcome",
    "adapter_result",
)

_AGAIN = "Delete the file and run dvc repro to generate it again."


@dataclass(frozen=True, slots=True)
class Prediction:
    """completion: without EOS; stopped: whether the model wrote EOS; tokens: how many it wrote."""

    completion: str
    stopped: bool
    tokens: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one prediction.

    outcome: `ok` (valid SQL) or why not; detail: where reading ended, for people; form: what was read, or None.
    execution, logical_form: whether it is right by that measure. result, gold_result: the rows, None if there are none.
    """

    outcome: Outcome
    detail: str
    form: LogicalForm | None
    logical_form: bool
    execution: bool
    result: tuple[Any, ...] | None
    gold_result: tuple[Any, ...]


def read_predictions(path: Path, examples: int) -> list[Prediction]:
    """Read a predictions file.

    Raises:
        SqloraError: naming file and line of a damaged line, or the number of lines if it is not `examples`.
    """
    predictions: list[Prediction] = []
    for where, record in read_jsonl(path, _AGAIN):
        values = (record.get("index"), record.get("completion"), record.get("stopped"), record.get("tokens"))
        index, completion, stopped, tokens = values
        if not isinstance(completion, str) or not isinstance(stopped, bool) or type(tokens) is not int:
            raise SqloraError(
                where,
                found=f"{record!r:.120}",
                expected="index, completion (a text), stopped (true or false) and tokens (a number)",
                next_step=_AGAIN,
            )
        if type(index) is not int or index != len(predictions):
            raise SqloraError(where, found=f"index {index!r}", expected=str(len(predictions)), next_step=_AGAIN)
        predictions.append(Prediction(completion, stopped, tokens))
    if len(predictions) != examples:
        raise SqloraError(
            path,
            found=f"{len(predictions)} predictions",
            expected=f"{examples}, one for each test question",
            next_step=_AGAIN,
        )
    return predictions


def judge(examples: Sequence[Example], predictions: Sequence[Prediction], db: Path) -> list[Verdict]:
    """A verdict for each prediction, in the order of the examples.

    Args:
        db: tables.db of the dataset; opened read-only.

    Raises:
        SqloraError: if the gold query of an example cannot be executed. A wrong prediction never raises.
    """
    verdicts = []
    with open_database(db) as runner:
        for index, (example, prediction) in enumerate(zip(examples, predictions, strict=True)):
            gold = execute(example.sql, example, runner)
            if gold.failure:
                raise SqloraError(
                    db,
                    found=f"a gold query that fails ({gold.failure}): {render_sql(example.sql, example)}",
                    expected=f"test question {index} to be answered by its own query",
                    next_step="Mend the question in the data's source, or run dvc repro to draw the split again.",
                )
            verdicts.append(_verdict(example, prediction, gold, runner))
    return verdicts


def summarise(verdicts: Sequence[Verdict], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Shares of all predictions, rounded to 4 decimals, and how many had each outcome."""
    share = {
        "execution_accuracy": sum(verdict.execution for verdict in verdicts),
        "logical_form_accuracy": sum(verdict.logical_form for verdict in verdicts),
        "valid_sql": sum(verdict.outcome == "ok" for verdict in verdicts),
        "stopped_at_eos": sum(prediction.stopped for prediction in predictions),
    }
    outcomes = Counter(verdict.outcome for verdict in verdicts)
    return {name: round(count / len(verdicts), 4) for name, count in share.items()} | {
        "outcomes": dict(sorted(outcomes.items()))
    }


def error_rows(
    examples: Sequence[Example],
    base: tuple[Sequence[Prediction], Sequence[Verdict]],
    adapter: tuple[Sequence[Prediction], Sequence[Verdict]],
) -> Iterator[list[object]]:
    """A row of ERROR_COLUMNS for each question whose result the adapter got wrong."""
    for index, example in enumerate(examples):
        if adapter[1][index].execution:
            continue
        row: list[object] = [index, example.table_id, example.question, render_sql(example.sql, example)]
        row.append(shorten(adapter[1][index].gold_result))
        for predictions, verdicts in (base, adapter):
            row += [predictions[index].completion.strip(), verdicts[index].outcome, shorten(verdicts[index].result)]
        yield row


def shorten(result: tuple[Any, ...] | None, width: int = 80) -> str:
    """The first values of a result and how many there are, in at most about `width` characters; empty if none ran."""
    if result is None:
        return ""
    shown = ", ".join("NULL" if value is None else str(value) for value in result[:width])
    return shown if len(shown) <= width else f"{shown[:width]}… ({len(result)} rows)"


def same_form(left: LogicalForm, right: LogicalForm, types: Sequence[str]) -> bool:
    """Whether two forms over one table are the same query.

    Conditions are compared as a set, values as texts in lower case. Beside a `real` column 7, 7.0 and "7" are one
    value, where the official evaluator compares how Python prints them: the text format cannot tell them apart.
    """

    def conditions(form: LogicalForm) -> set[Condition]:
        return {(column, operator, _comparable(value, types[column])) for column, operator, value in form.conds}

    return (left.sel, left.agg) == (right.sel, right.agg) and conditions(left) == conditions(right)


def _verdict(example: Example, prediction: Prediction, gold: Execution, runner: Runner) -> Verdict:
    if not prediction.stopped:
        return Verdict("no_stop", f"after {prediction.tokens} tokens", None, False, False, None, gold.rows)
    parsed = parse_sql(prediction.completion, example.table_id, example.header, example.types)
    if parsed.form is None:
        return Verdict(parsed.outcome, parsed.detail, None, False, False, None, gold.rows)
    logical_form = same_form(parsed.form, example.sql, example.types)
    result = execute(parsed.form, example, runner)
    if result.failure:
        return Verdict(result.failure, "", parsed.form, logical_form, False, None, gold.rows)
    return Verdict("ok", "", parsed.form, logical_form, result.rows == gold.rows, result.rows, gold.rows)


def _comparable(value: Value, kind: str) -> Value:
    # Both sides go through their text, so that what the format rounds it rounds on both.
    number = parse_number(render_value(value)) if kind == "real" else None
    return str(value).lower() if number is None else number
