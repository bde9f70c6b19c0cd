"""Reading of prediction files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sqlora.errors import SqloraError
from sqlora.score.predictions import Prediction, read_predictions


def lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def record(index: int, **changes: Any) -> dict[str, Any]:
    return {"index": index, "completion": " SELECT", "stopped": True, "tokens": 2} | changes


def test_predictions_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "base.jsonl"
    records = [record(0), record(1, stopped=False, completion="é"), record(2, stopped=False, closed=True)]
    path.write_text(lines(*records), encoding="utf-8")
    expected = [
        Prediction(" SELECT", True, 2),
        Prediction("é", False, 2, closed=False),
        Prediction(" SELECT", False, 2, closed=True),
    ]
    assert read_predictions(path, 3) == expected


@pytest.mark.parametrize(
    ("text", "where", "found"),
    [
        (lines(record(0)), "", "1 predictions"),
        (lines(record(0), record(1), record(2)), "", "3 predictions"),
        (lines(record(0), record(0)), ":2", "index 0"),
        (lines(record(1), record(0)), ":1", "index 1"),
        (lines(record(0), record(1, stopped="yes")), ":2", "'yes'"),
        (lines(record(0), record(1, closed=1)), ":2", "'closed': 1"),
        (lines(record(0), record(1, completion=None)), ":2", "None"),
        (lines(record(0), record(1, tokens=True)), ":2", "'tokens': True"),
        (lines(record(0), {"index": 1}), ":2", "{'index': 1}"),
        (lines(record(0), record(1))[:-5], ":2", "no JSON"),
    ],
)
def test_damaged_predictions(tmp_path: Path, text: str, where: str, found: str) -> None:
    path = tmp_path / "base.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SqloraError) as caught:
        read_predictions(path, 2)
    assert caught.value.where == f"{path}{where}"
    assert found in caught.value.found
