"""Describes a split: what results/dataset.json holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlora.errors import SqloraError
from sqlora.split.draw import Split, gold_results, is_degenerate
from sqlora.sql.execute import Execution
from sqlora.sql.parse import parse_sql
from sqlora.text import Example
from sqlora.tokenizer import Tokenizer
from sqlora.wikisql.form import AGGREGATES


def describe(split: Split, db: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """Split name -> its size, tables, strata, lengths in the base model's tokens, and what may surprise.

    Args:
        db: tables.db of the split.

    Raises:
        SqloraError: if the gold query of a test question cannot be executed: nothing could be compared with it.
    """
    trained = {(example.header, example.question) for example in split.examples["train"]}
    tables = {example.table_id for example in split.examples["train"]}
    description = {}
    for name, examples in split.examples.items():
        description[name] = _describe(examples, tokenizer, _execute(name, examples, db))
        if name != "train":
            description[name] |= {
                "tables_in_train": len({example.table_id for example in examples} & tables),
                "questions_in_train": sum((example.header, example.question) in trained for example in examples),
            }
    description["test"]["degenerate_dropped"] = split.dropped
    return description


def chart_rows(description: Mapping[str, Mapping[str, Any]]) -> list[dict[str, object]]:
    """The lengths of each split's examples as rows, which is what a plot of DVC reads."""
    return [
        {"examples": f"{name}, {label}", "tokens": part["tokens"][measure]}
        for name, part in description.items()
        for measure, label in (("median", "median"), ("p95", "95%"), ("max", "longest"))
    ]


def _execute(name: str, examples: Sequence[Example], db: Path) -> list[Execution]:
    results = gold_results(examples, db)
    for example, result in zip(examples, results, strict=True):
        if result.failure and name == "test":
            raise SqloraError(
                f"table {example.table_id}",
                found=f"a gold query that fails ({result.failure}): {example.completion.strip()}",
                expected=f"the test question {example.question.strip()!r} to be answered by its own query",
                next_step="Mend the question in the source that data.source names, or set split.drop_degenerate.",
            )
    return results


def _describe(examples: Sequence[Example], tokenizer: Tokenizer, gold: Sequence[Execution]) -> dict[str, Any]:
    encoded = [tokenizer.encode_example(example.prompt, example.completion) for example in examples]
    aggregates = Counter(AGGREGATES[example.sql.agg] or "none" for example in examples)
    conditions = Counter(len(example.sql.conds) for example in examples)
    stated = [
        str(value).lower() in example.question.lower() for example in examples for _, _, value in example.sql.conds
    ]
    return {
        "examples": len(examples),
        "tables": len({example.table_id for example in examples}),
        "aggregates": {name or "none": aggregates[name or "none"] for name in AGGREGATES},
        "conditions": {str(count): conditions[count] for count in sorted(conditions)},
        "tokens": _lengths([len(example.tokens) for example in encoded]),
        "completion_tokens": _lengths([len(example.tokens) - example.prompt_tokens for example in encoded]),
        "degenerate": sum(map(is_degenerate, gold)),
        "unreadable": sum(map(_is_unreadable, examples)),
        "duplicates": len(examples) - len({(example.table_id, example.question) for example in examples}),
        "values_in_question": round(sum(stated) / len(stated), 4) if stated else None,
        "questions_without_value": sum(map(_lacks_a_value, examples)),
    }


def _is_unreadable(example: Example) -> bool:
    """Whether the gold query's text reads as another query or as none, such as `10 km` beside a `real` column.

    An answer that is this text to the letter is right all the same.
    """
    return parse_sql(example.completion, example.table_id, example.header, example.types).form != example.sql


def _lacks_a_value(example: Example) -> bool:
    question = example.question.lower()
    return any(str(value).lower() not in question for _, _, value in example.sql.conds)


def _lengths(lengths: list[int]) -> dict[str, float]:
    """Mean, median, 95th percentile (the smallest length that 95% do not exceed) and longest."""
    ranked = sorted(lengths)
    return {
        "mean": round(sum(ranked) / len(ranked), 1),
        "median": ranked[(len(ranked) - 1) // 2],
        "p95": ranked[(19 * len(ranked) - 1) // 20],
        "max": ranked[-1],
    }
