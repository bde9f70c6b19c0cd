"""Reads JSON lines; every failure names the file and the line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

from sqlora.errors import SqloraError

LONGEST_LINE = 32 << 20  # far above any table; a line without end must not fill the memory
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_jsonl(path: Path, next_step: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("file:line", object) for each line.

    Args:
        path: UTF-8, one JSON object a line.
        next_step: what the user can do about a damaged file.

    Raises:
        SqloraError: no such file, or a line that is no JSON object (NaN and lone surrogates count as damage).
    """
    decoder = json.JSONDecoder(parse_constant=_refuse)
    try:
        with open(path, "rb") as handle:
            for number in count(1):
                where = f"{path}:{number}"
                raw = handle.readline(LONGEST_LINE + 1)
                if not raw:
                    return
                if len(raw) > LONGEST_LINE:
                    raise SqloraError(
                        where,
                        found=f"a line of more than {LONGEST_LINE:,} bytes",
                        expected="one JSON object of reasonable size",
                        next_step=next_step,
                    )
                yield where, _parse(where, raw, decoder, next_step)
    except OSError as error:
        raise SqloraError(
            path, found=error.strerror or str(error), expected="a file of JSON lines", next_step=next_step
        ) from None


def write_jsonl(path: Path, objects: Iterable[dict[str, Any]]) -> None:
    """Write one object a line, keys in their order, as UTF-8 that a person can read."""
    with open(path, "w", encoding="utf-8", newline="\n") as handle:
        for value in objects:
            handle.write(json.dumps(value, ensure_ascii=False) + "\n")


def _parse(where: str, raw: bytes, decoder: json.JSONDecoder, next_step: str) -> dict[str, Any]:
    try:
        line = raw.decode("utf-8").strip()
        value = decoder.decode(line)
        if _SURROGATE.search(line):
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # half a pair cannot be written or tokenized
    except (ValueError, RecursionError) as error:
        found = f"a line that is no JSON ({error})" if raw.strip() else "a blank line"
        raise SqloraError(where, found=found, expected="one JSON object", next_step=next_step) from None
    if not isinstance(value, dict):
        raise SqloraError(
            where, found=f"a JSON {type(value).__name__}", expected="one JSON object", next_step=next_step
        )
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
