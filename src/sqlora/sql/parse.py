"""Parses the dialect of the text format back into a logical form, by means of the table's schema.

Names and texts are neither quoted nor escaped there, so `SELECT Score in the final FROM 1-2 WHERE From = 'O'Hara'` has
no grammar of its own: a name is whatever the header holds. The parser tries the header's names at each place, the
exact letter case first and the longest first, and goes back when the rest of the query cannot be read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlora.wikisql.form import AGGREGATES, OPERATORS, Condition, LogicalForm, Value

ParseOutcome = Literal["ok", "empty", "bad_syntax", "unknown_column", "wrong_table"]

_SELECT = re.compile(r"SELECT\s+", re.I)
# The blank in front may be gone already: a column without a name has nothing between SELECT and FROM.
_FROM = re.compile(r"(?:\s+|(?<=\s))FROM\s+(?=\S)", re.I)
_SOME_FROM = re.compile(r"\sFROM\s+\S", re.I)
_WHERE = re.compile(r"\s+WHERE\s+", re.I)
_AND = re.compile(r"\s+AND\s+", re.I)
_OPERATOR = re.compile(r"\s*([=<>])\s*")
# What begins a condition whatever its column is called; tells an unknown column from a text that holds an AND.
_SOME_CONDITION = re.compile(r"[^'=<>]*[=<>]")
_NUMBER = re.compile(r"[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?", re.I)
# WikiSQL calls some columns real that hold `1995-96` or `10th`: one word that begins as a number does.
_REAL = re.compile(r"(?P<quote>'?)(?P<value>[-+]?\.?\d(?:[^\s']*[\w%)])?)(?P=quote)(?=\s|$)")
# Bounds of time and recursion for what a model may write; far above what any table's query needs.
_LONGEST = 10_000
_MOST_OPERATORS = 100


@dataclass(frozen=True, slots=True)
class Parsed:
    """outcome: why there is no form, or `ok`; detail: where reading ended, for people; empty if `ok`."""

    outcome: ParseOutcome
    form: LogicalForm | None = None
    detail: str = ""


def parse_sql(text: str, table_id: str, header: Sequence[str], types: Sequence[str]) -> Parsed:
    """Read one query.

    Letter case and the width of blanks do not matter in names and keywords; they do in values. A text value ends at
    the first quote behind which the query ends or goes on with AND, a name and an operator, so it may hold quotes and
    ANDs. A value of a `real` column is a number, with or without thousands separators and quotes around it.

    What no parser can tell apart is read so: a name that begins with an aggregate beats the aggregate (unless only
    the latter has the letter case right), and of two columns of one name the first one is meant.

    Returns:
        `ok` with the form, or the failure that stands farthest to the right.
    """
    return _Parser(text.strip(), table_id, header, types).parse()


class _Parser:
    def __init__(self, text: str, table_id: str, header: Sequence[str], types: Sequence[str]) -> None:
        self.text = text
        self.table = re.compile(re.escape(table_id) + r"(?=\s|$)", re.I)
        self.types = types
        # Longest first, so that `Score in the final` is tried before `Score`; of equals the first column first.
        self.columns = sorted(
            ((index, name.strip(), _name_pattern(name)) for index, name in enumerate(header)), key=lambda c: -len(c[1])
        )
        self.failed: dict[int, ParseOutcome] = {}  # place in the text -> what was wrong there
        self.read: dict[int, tuple[Condition, ...] | None] = {}  # place in the text -> the conditions from there on

    def parse(self) -> Parsed:
        if not self.text:
            return Parsed("empty")
        start = _SELECT.match(self.text)
        if not start or len(self.text) > _LONGEST or sum(map(self.text.count, OPERATORS)) > _MOST_OPERATORS:
            return self._failure(0, "bad_syntax")
        for sel, agg, end in self._selections(start.end()):
            table = self.table.match(self.text, end)
            if not table:
                self._failure(end, "wrong_table")
                continue
            if table.end() == len(self.text):
                return Parsed("ok", LogicalForm(sel, agg, ()))
            where = _WHERE.match(self.text, table.end())
            if not where:
                self._failure(table.end(), "bad_syntax")
                continue
            conds = self._conditions(where.end())
            if conds is not None:
                return Parsed("ok", LogicalForm(sel, agg, conds))
        if not self.failed:
            unknown = _SOME_FROM.search(self.text, start.end())
            return self._failure(start.end(), "unknown_column" if unknown else "bad_syntax")
        place = max(self.failed)
        return self._failure(place, self.failed[place])

    def _failure(self, place: int, outcome: ParseOutcome) -> Parsed:
        self.failed.setdefault(place, outcome)
        shown = self.text[place : place + 40]
        return Parsed(outcome, None, f"at {shown!r}" if shown else "at the end")

    def _selections(self, start: int) -> list[tuple[int, int, int]]:
        """(column, aggregate, end of FROM) for each way to read what is selected, the best one first."""
        found = []
        for agg, word in enumerate(AGGREGATES):
            prefix = re.compile(word + r"\s+" if word else "", re.I).match(self.text, start)
            if not prefix:
                continue
            for index, name, pattern in self.columns:
                column = pattern.match(self.text, prefix.end())
                end = column and _FROM.match(self.text, column.end())
                if column and end:
                    exact = column.group() == name and (not word or prefix.group().startswith(word))
                    found.append(((not exact, -len(name)), (index, agg, end.end())))
        return [selection for _, selection in sorted(found, key=lambda item: item[0])]

    def _conditions(self, start: int) -> tuple[Condition, ...] | None:
        """The conditions from `start` to the end of the text, or None; every place is read once."""
        if start not in self.read:
            self.read[start] = None
            self.read[start] = self._read_conditions(start)
        return self.read[start]

    def _read_conditions(self, start: int) -> tuple[Condition, ...] | None:
        columns = []
        for index, name, pattern in self.columns:
            column = pattern.match(self.text, start)
            operator = column and _OPERATOR.match(self.text, column.end())
            if column and operator:
                columns.append((column.group() != name, index, operator))
        if not columns:
            self._failure(start, "unknown_column" if _SOME_CONDITION.match(self.text, start) else "bad_syntax")
        for _, index, operator in sorted(columns, key=lambda item: item[0]):
            read = self._text if self.types[index] == "text" else self._real
            value = read(operator.end())
            if value is not None:
                return ((index, OPERATORS.index(operator.group(1)), value[0]), *value[1])
        return None

    def _text(self, start: int) -> tuple[Value, tuple[Condition, ...]] | None:
        if not self.text.startswith("'", start):
            self._failure(start, "bad_syntax")
            return None
        end = start
        while (end := self.text.find("'", end + 1)) != -1:
            if end + 1 == len(self.text):
                return self.text[start + 1 : end], ()
            following = _AND.match(self.text, end + 1)
            if not following:
                continue
            rest = self._conditions(following.end())
            if rest is not None:
                return self.text[start + 1 : end], rest
            if _SOME_CONDITION.match(self.text, following.end()):
                return None
        self._failure(start, "bad_syntax")
        return None

    def _real(self, start: int) -> tuple[Value, tuple[Condition, ...]] | None:
        found = _REAL.match(self.text, start)
        if not found:
            self._failure(start, "bad_syntax")
            return None
        value = parse_number(found["value"])
        if found.end() == len(self.text):
            return (found["value"] if value is None else value), ()
        following = _AND.match(self.text, found.end())
        if not following:
            self._failure(found.end(), "bad_syntax")
            return None
        rest = self._conditions(following.end())
        return None if rest is None else ((found["value"] if value is None else value), rest)


def parse_number(text: str) -> int | float | None:
    """The number that the whole text is, thousands separators allowed, or None."""
    if not _NUMBER.fullmatch(text):
        return None
    plain = text.replace(",", "")
    # Longer ones leave SQLite's 64 bits, and Python refuses to read very long ones.
    whole = plain.lstrip("+-").isdigit() and len(plain) <= 18
    return int(plain) if whole else float(plain)


def _name_pattern(name: str) -> re.Pattern[str]:
    return re.compile(r"\s+".join(re.escape(word) for word in name.split()), re.I)
