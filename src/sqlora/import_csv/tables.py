"""Reads a folder of CSV files as tables in WikiSQL's layout: their ids, columns, types and cells."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlora.errors import SqloraError
from sqlora.import_csv.files import read_records
from sqlora.wikisql.layout import Cell, Table

_AGAIN = "Mend the file and run the same command again."
# The code of a part or a place, such as 007, is no number: it would lose its zeros.
_WHOLE = r"(?:0|[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]*)"
_NUMBER = re.compile(rf"[-+]?(?:{_WHOLE}(?:\.[0-9]+)?|\.[0-9]+)(?:e[-+]?[0-9]+)?", re.I)
_MOST_DIGITS = 18  # of a whole number that SQLite and JSON readers keep exactly; a longer one is an identifier
_MOST_COLUMNS = 2000  # SQLite's


@dataclass(frozen=True)
class CsvTable:
    """name: of the file without `.csv`; notes: what in the file may have made a column text by mistake."""

    name: str
    table: Table
    notes: tuple[str, ...]


@dataclass(frozen=True)
class CsvFolder:
    """tables: by `table_key`; broken: the keys of files with a problem; problems: all of them, in the files' order."""

    tables: dict[str, CsvTable]
    broken: frozenset[str]
    problems: tuple[SqloraError, ...]


def read_csv_folder(folder: Path, *, text: Collection[str] = (), delimiter: str | None = None) -> CsvFolder:
    """Read every NAME.csv of a folder, in the order of the names.

    Args:
        text: names of columns, in any table, that are text whatever their cells look like.
        delimiter: between cells, or None to find it out for each file.

    Raises:
        SqloraError: if there is no folder, or no CSV file in it. Whatever is wrong with a file is collected instead.
    """
    paths = _csv_files(folder)
    by_key: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        by_key[table_key(path.name)].append(path)
    tables: dict[str, CsvTable] = {}
    broken: set[str] = set()
    problems: list[SqloraError] = []
    forced = {fold(name) for name in text}
    for key, same in by_key.items():
        if not key or len(same) > 1:
            problems.append(_bad_names(folder, same))
            broken.add(key)
            continue
        found = read_csv_table(same[0], forced, delimiter)
        if isinstance(found, CsvTable):
            tables[key] = found
        else:
            problems += found
            broken.add(key)
    known = {fold(name) for table in tables.values() for name in table.table.header}
    for name in text:
        if not broken and fold(name) not in known:
            problems.append(
                SqloraError(f"--text {name}", found="no such column", expected="a column of a table", next_step=_AGAIN)
            )
    return CsvFolder(tables, frozenset(broken), tuple(problems))


def table_key(name: str) -> str:
    """What a file's name, with or without `.csv`, shares with every other spelling of the same table; may be empty."""
    return _table_id(name).casefold()


def stem(name: str) -> str:
    """A file's name without `.csv`, if it ends so."""
    # macOS hands out decomposed letters: without NFC the id would depend on the machine.
    name = unicodedata.normalize("NFC", name.strip())
    return name[:-4] if name.lower().endswith(".csv") else name


def fold(name: str) -> str:
    """A column's name as it is compared: letter case and the width of blanks do not matter, as in the queries."""
    return " ".join(name.split()).casefold()


def read_number(text: str) -> int | float | None:
    """The number that the whole text is (`7`, `-2.5`, `1,234.5`, `1e6`), or None.

    None for a code with leading zeros, infinity, not-a-number, and whole numbers of more than 18 digits.
    """
    if not _NUMBER.fullmatch(text):
        return None
    plain = text.replace(",", "")
    if plain.lstrip("+-").isdigit():
        return int(plain) if len(plain.lstrip("+-")) <= _MOST_DIGITS else None
    number = float(plain)
    return number if math.isfinite(number) else None


def _csv_files(folder: Path) -> list[Path]:
    expected = "a folder of CSV files, one for each table"
    try:
        there = sorted(folder.iterdir(), key=lambda path: (path.name.casefold(), path.name))
        # Names that begin with a dot are macOS's and office programs' own.
        paths = [path for path in there if path.suffix.lower() == ".csv" and path.name[0] != "." and path.is_file()]
    except OSError as error:
        found = error.strerror or str(error)
        raise SqloraError(folder, found=found, expected=expected, next_step="Correct the path.") from None
    if not paths:
        among = ", ".join(path.name for path in there[:10]) + ", …" * (len(there) > 10) or "an empty folder"
        raise SqloraError(
            folder,
            found=f"no file NAME.csv: {among}",
            expected=expected,
            next_step="Name the folder that holds the tables.",
        )
    return paths


def _table_id(name: str) -> str:
    return "-".join(re.findall(r"[^\W_]+", stem(name)))


def _bad_names(folder: Path, paths: Sequence[Path]) -> SqloraError:
    names = " and ".join(path.name for path in paths)
    if len(paths) == 1:
        expected = "a name with a letter or a digit"
    else:
        expected = "names that differ in more than letter case and the characters that are no letters or digits"
    return SqloraError(folder, found=names, expected=expected, next_step="Rename the file and run again.")


def read_csv_table(path: Path, forced: Collection[str], delimiter: str | None) -> CsvTable | list[SqloraError]:
    """The table, or everything that is wrong with it."""
    try:
        records = read_records(path, delimiter)
    except SqloraError as error:
        return [error]
    if len(records) < 2:
        found = "a header without rows" if records else "an empty file"
        return [SqloraError(path, found=found, expected="a header and at least one row", next_step=_AGAIN)]
    (line, header), rows = records[0], records[1:]
    problems = [SqloraError(f"{path}:{line}", found=f, expected=e, next_step=_AGAIN) for f, e in _bad_header(header)]
    problems += [
        SqloraError(
            f"{path}:{line}",
            found=f"{len(cells)} cells",
            expected=f"{len(header)}, one for each column of the header",
            next_step=_AGAIN,
        )
        for line, cells in rows
        if len(cells) != len(header)
    ]
    if problems:
        return problems
    columns: list[list[Cell]] = []
    types: list[str] = []
    notes: list[str] = []
    for index, name in enumerate(header):
        cells = [row[index] for _, row in rows]
        numbers = [None if fold(name) in forced else read_number(cell) for cell in cells]
        filled = sum(map(bool, cells))
        count = sum(number is not None for number in numbers)
        real = 0 < count == filled
        types.append("real" if real else "text")
        columns.append(list(numbers) if real else list(cells))
        if filled / 2 < count < filled:
            at = next(at for at, cell in enumerate(cells) if cell and numbers[at] is None)
            if not cells[at].isdigit():  # a column of codes is no mistake
                notes.append(
                    f"{path}:{rows[at][0]}: {cells[at]!r:.40} makes column {name} text; "
                    f"{count} of its {filled} cells are numbers"
                )
    table = Table(_table_id(path.name), tuple(header), tuple(types), tuple(zip(*columns, strict=True)))
    return CsvTable(stem(path.name), table, tuple(notes))


def _bad_header(header: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(found, expected) of whatever is wrong with the names of the columns."""
    columns: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(header, 1):
        if not name:
            yield f"column {number} without a name", "a name for each column in the first row"
            continue
        if len(name.splitlines()) > 1:
            yield f"column {number}, {name!r:.80}, with a line break in its name", "names of one line"
        columns[fold(name)].append(number)
    for name, numbers in columns.items():
        if len(numbers) > 1:
            yield f"columns {', '.join(map(str, numbers))} all named {name!r:.80}", "names that differ (case aside)"
    if len(header) > _MOST_COLUMNS:
        yield f"{len(header)} columns", f"at most {_MOST_COLUMNS}"
