"""Reads one CSV file: its encoding, its delimiter, its records."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from itertools import islice
from pathlib import Path

from sqlora.errors import SqloraError

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t"}

_AGAIN = "Mend the file and run the same command again."
_SAMPLE = 100  # rows that decide on the delimiter


def read_records(path: Path, delimiter: str | None) -> list[tuple[int, list[str]]]:
    """The records in which some cell is filled.

    Args:
        path: UTF-8, with a byte order mark or without, quoted as the csv module quotes.
        delimiter: between cells, or None to find it out.

    Returns:
        (number of the record's first line, cells without blanks around them).

    Raises:
        SqloraError: another encoding (naming the line of the first byte that does not fit), broken quotes, or a file
            that two delimiters fit.
    """
    content = _decode(path)
    delimiter = delimiter or _delimiter(path, content)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    records = []
    line = 1
    try:
        for raw in reader:
            cells = [cell.strip() for cell in raw]
            if any(cells):
                records.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise SqloraError(
            f"{path}:{line}",
            found=f"no CSV ({error})",
            expected=f"cells between {delimiter!r}; a cell that holds line breaks or {delimiter!r} in double quotes, "
            "and double quotes inside of it doubled",
            next_step=_AGAIN,
        ) from None
    return records


def _decode(path: Path) -> str:
    expected = "a CSV file in UTF-8 (Excel calls it `CSV UTF-8`)"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SqloraError(path, found=error.strerror or str(error), expected=expected, next_step=_AGAIN) from None
    start = data.find(b"\0")  # valid UTF-8, but in a file of text the mark of UTF-16
    found = "a zero byte"
    content = ""
    try:
        content = data.decode("utf-8")
    except UnicodeDecodeError as error:
        start = error.start
        found = f"the byte 0x{data[start]:02X}, which is not UTF-8"
    if start >= 0:
        line = len(re.findall(rb"\r\n|\r|\n", data[:start])) + 1
        raise SqloraError(f"{path}:{line}", found=found, expected=expected, next_step=_AGAIN)
    # Tables and questions may come from different machines, and `é` made of two characters equals no `é` made of one.
    return unicodedata.normalize("NFC", content.removeprefix("\ufeff"))


def _delimiter(path: Path, content: str) -> str:
    # csv.Sniffer knows no table of one column, and silently takes one of two delimiters that both fit.
    widths: dict[str, list[int]] = {}
    for delimiter in DELIMITERS.values():
        reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter)
        try:
            widths[delimiter] = [len(cells) for cells in islice(reader, _SAMPLE) if any(map(str.strip, cells))] or [0]
        except csv.Error:
            widths[delimiter] = [0]
    fitting = [delimiter for delimiter, found in widths.items() if found[0] > 1 and len(set(found)) == 1]
    if len(fitting) > 1:
        raise SqloraError(
            path,
            found=f"rows that are equally long with {' and with '.join(map(repr, fitting))} between cells",
            expected="one delimiter that fits",
            next_step="Name it with --delimiter.",
        )
    return fitting[0] if fitting else max(widths, key=lambda delimiter: widths[delimiter][0])
