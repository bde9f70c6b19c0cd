"""Reads JSON that an earlier stage wrote; every failure names the file and the key."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from sqlora.errors import SqloraError

_AGAIN = "Delete the file and run dvc repro."


def read_json(path: Path) -> dict[str, Any]:
    """The object that the file holds; SqloraError for a file that is missing or holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        unreadable(path, error, "a JSON object")
    if not isinstance(value, dict):
        damaged(path, f"a JSON {type(value).__name__}", "a JSON object")
    return value


def read_object(path: Path, record: dict[str, Any], key: str) -> dict[str, Any]:
    """The object under a key, or SqloraError."""
    value = record.get(key)
    if not isinstance(value, dict):
        damaged(path, f"{key} {value!r:.80}" if key in record else f"no key {key}", f"an object under {key}")
    return value


def read_number(path: Path, record: dict[str, Any], key: str, inside: str = "") -> float:
    """The number under a key, or SqloraError; `inside` is the path to the record, for the message."""
    value = record.get(key)
    # NaN and infinity, which Python's JSON reader lets in, are results of nothing.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        found = f"{inside}{key} {value!r:.80}" if key in record else f"no key {inside}{key}"
        damaged(path, found, f"a number under {inside}{key}")
    return value


def unreadable(path: Path, error: Exception, expected: str) -> NoReturn:
    """Raise SqloraError for a file that cannot be opened or parsed."""
    if isinstance(error, FileNotFoundError):
        raise SqloraError(
            path, found="no such file", expected=expected, next_step="Run dvc repro at the top of the repository."
        ) from None
    damaged(path, str(error), expected)


def damaged(where: object, found: str, expected: str) -> NoReturn:
    """Raise SqloraError for a file whose content is not what a stage writes."""
    raise SqloraError(where, found=found, expected=expected, next_step=_AGAIN) from None


def read_counts(path: Path, record: dict[str, Any], key: str, inside: str = "") -> Mapping[str, int]:
    """The object under a key, all of whose values are numbers."""
    counts = read_object(path, record, key)
    return {name: int(read_number(path, counts, name, f"{inside}{key}.")) for name in counts}
