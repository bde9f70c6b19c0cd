"""Reads what the generate stages write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlora.errors import SqloraError
from sqlora.jsonl import read_jsonl

_AGAIN = "Delete the file and run dvc repro to generate it again."


@dataclass(frozen=True, slots=True)
class Prediction:
    """completion: without EOS; stopped: whether EOS ended it; tokens: of the completion; closed: whether it
    did not end, but was cut back to a complete query.
    """

    completion: str
    stopped: bool
    tokens: int
    closed: bool = False


def read_predictions(path: Path, examples: int) -> list[Prediction]:
    """Read a predictions file.

    Raises:
        SqloraError: naming file and line of a damaged line, or the number of lines if it is not `examples`.
    """
    predictions: list[Prediction] = []
    for where, record in read_jsonl(path, _AGAIN):
        values = (record.get("index"), record.get("completion"), record.get("stopped"), record.get("tokens"))
        index, completion, stopped, tokens = values
        closed = record.get("closed", False)  # older files have none
        if (
            not isinstance(completion, str)
            or not isinstance(stopped, bool)
            or not isinstance(closed, bool)
            or type(tokens) is not int
        ):
            raise SqloraError(
                where,
                found=f"{record!r:.120}",
                expected="index, completion (a text), stopped (true or false), tokens (a number) and, where there is "
                "one, closed (true or false)",
                next_step=_AGAIN,
            )
        if type(index) is not int or index != len(predictions):
            raise SqloraError(where, found=f"index {index!r}", expected=str(len(predictions)), next_step=_AGAIN)
        predictions.append(Prediction(completion, stopped, tokens, closed))
    if len(predictions) != examples:
        raise SqloraError(
            path,
            found=f"{len(predictions)} predictions",
            expected=f"{examples}, one for each test question",
            next_step=_AGAIN,
        )
    return predictions
