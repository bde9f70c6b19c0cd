"""Parses the dialect of the text format back into a logical form, by means of the table's schema.

Names and texts are neither quoted nor escaped there, so `SELECT Score in the final FROM 1-2 WHERE From = 'O'Hara'` has
no grammar of its own: a name is whatever the header holds. The parser tries the header's names at each place, the
exact letter case first and the longest first, and goes back when the rest of the query cannot be read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from sqlora.sql.names import Name
from sqlora.wikisql.form import AGGREGATES, OPERATORS, LogicalForm, Value

ParseOutcome = Literal["ok", "empty", "bad_syntax", "unsupported", "unknown_column", "wrong_table"]

_SELECT = re.compile(r"SELECT\s+", re.I)
# With a bracket, or without: a column may be called `(x)`.
_AGGREGATES = [
    (index, brackets, re.compile(word + follows, re.I))
    for index, word in enumerate(AGGREGATES)
    for brackets, follows in ((False, r"\s+"), (True, r"\s*\(\s*"))
    if word
]
_CLOSE = re.compile(r"\s*\)")
# The blank in front may be gone already: a column without a name has nothing between SELECT and FROM.
_FROM = re.compile(r"(?:\s+|(?<=[\s)\]\"`]))FROM\s+(?=\S)", re.I)
_SOME_FROM = re.compile(r"\sFROM\s+\S", re.I)
_WHERE = re.compile(r"\s+WHERE\s+", re.I)
_AND = re.compile(r"\s+AND\s+", re.I)
_END = re.compile(r"\s*;?\s*\Z")
_OPERATOR = re.compile(r"\s*([=<>])(?![=>])\s*|\s*==\s*")
# SQL that is no WikiSQL query: what may follow SELECT, a column of a condition, and a table or a value.
_OTHER_SELECT = re.compile(r"DISTINCT\b|\*|\w+\s*\(\s*(?:\*|DISTINCT\b)", re.I)
_OTHER_OPERATOR = re.compile(r"\s*(?:[<>!]=|<>)|\s+(?:NOT|LIKE|IN|BETWEEN|IS)\b", re.I)
_OTHER_CLAUSE = re.compile(r"\s+(?:OR|ORDER|GROUP|LIMIT|HAVING|UNION|INTERSECT|EXCEPT|JOIN|INNER|LEFT|AS)\b", re.I)
# Behind a text's quote these are SQL, not the text going on: `'Ann' OR Name = 'Bo'`.
_OTHER_CONDITION = re.compile(
    r"\s+(?:OR\s[^'=<>]*(?:[=<>]|\sLIKE\b|\sIN\b|\sIS\b)|(?:ORDER|GROUP)\s+BY\s|LIMIT\s+\d|HAVING\s|"
    r"(?:UNION|INTERSECT|EXCEPT)\s(?:ALL\s+)?SELECT\b)",
    re.I,
)
# What begins a condition whatever its column is called; tells an unknown column from a text that holds an AND.
_SOME_CONDITION = re.compile(r"[^'=<>]*[=<>]")
_NUMBER = re.compile(r"[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?", re.I)
# WikiSQL calls some columns real that hold `1995-96` or `10th`: one word that begins as a number does.
_REAL = re.compile(
    r"(?P<quote>['\"])(?P<quoted>[^'\"]*)(?P=quote)(?=\s|;|\Z)|(?P<bare>[-+]?\.?\d(?:[^\s'\";]*[\w%.)])?)(?=\s|;|\Z)"
)
# Bounds of time and recursion for what a model may write; far above what any table's query needs.
_LONGEST = 10_000
_MOST_OPERATORS = 100


@dataclass(frozen=True, slots=True)
class Parsed:
    """What was read.

    outcome: why there is no form, or `ok`; detail: where reading ended, for people; empty if `ok`.
    literals: the value of each condition as it was written, without quotes; WikiSQL's official evaluator compares
        these, where the form holds numbers.
    """

    outcome: ParseOutcome
    form: LogicalForm | None = None
    detail: str = ""
    literals: tuple[str, ...] = ()


class _Read(NamedTuple):
    column: int
    operator: int
    value: Value
    literal: str


class _Selection(NamedTuple):
    rank: tuple[bool, bool, int]  # the lowest is the best way to read
    column: int
    aggregate: int
    end: int  # of FROM


def parse_sql(text: str, table_id: str, header: Sequence[str], types: Sequence[str]) -> Parsed:
    """Read one query.

    Letter case and the width of blanks do not matter in names and keywords; they do in values. A text value ends at
    the first quote behind which the query ends or goes on with AND, a name and an operator, so it may hold quotes and
    ANDs. A value of a `real` column is a number, with or without thousands separators and quotes around it.

    Read as well, because models write it: names and the table's id in double quotes, backticks or brackets,
    `COUNT(name)`, texts in double quotes, a bare number beside a text column, any text in quotes beside a `real` one,
    `==`, a semicolon at the end. Quotes that SQL would double stand as they are written.

    What no parser can tell apart is read so: a name that begins with an aggregate beats the aggregate (unless only
    the latter has the letter case right), and of two columns of one name the first one is meant.

    Returns:
        `ok` with the form, or the failure that stands farthest to the right.
    """
    return _Parser(text.strip(), table_id, header, types).parse()


def parse_number(text: str) -> int | float | None:
    """The number that the whole text is, thousands separators allowed, or None."""
    if not _NUMBER.fullmatch(text):
        return None
    plain = text.replace(",", "")
    # Longer ones leave SQLite's 64 bits, and Python refuses to read very long ones.
    whole = plain.lstrip("+-").isdigit() and len(plain) <= 18
    return int(plain) if whole else float(plain)


class _Parser:
    def __init__(self, text: str, table_id: str, header: Sequence[str], types: Sequence[str]) -> None:
        self.text = text
        self.table = Name(table_id)
        self.types = types
        # Longest first, so that `Score in the final` is tried before `Score`; of equals the first column first.
        names = sorted(enumerate(header), key=lambda item: -len(item[1].strip()))
        self.columns = [(index, Name(name)) for index, name in names]
        self.failed: dict[int, ParseOutcome] = {}  # place in the text -> what was wrong there
        self.read: dict[int, tuple[_Read, ...] | None] = {}  # place in the text -> the conditions from there on

    def parse(self) -> Parsed:
        if not self.text:
            return Parsed("empty")
        start = _SELECT.match(self.text)
        if not start or len(self.text) > _LONGEST or sum(map(self.text.count, OPERATORS)) > _MOST_OPERATORS:
            return self._failure(0, "bad_syntax")
        for selection in self._selections(start.end()):
            conds = self._after_from(selection.end)
            if conds is not None:
                form = LogicalForm(selection.column, selection.aggregate, tuple(read[:3] for read in conds))
                return Parsed("ok", form, literals=tuple(read.literal for read in conds))
        if not self.failed:
            if _OTHER_SELECT.match(self.text, start.end()):
                return self._failure(start.end(), "unsupported")
            unknown = _SOME_FROM.search(self.text, start.end())
            return self._failure(start.end(), "unknown_column" if unknown else "bad_syntax")
        place = max(self.failed)
        return self._failure(place, self.failed[place])

    def _failure(self, place: int, outcome: ParseOutcome) -> Parsed:
        self.failed.setdefault(place, outcome)
        shown = self.text[place : place + 40]
        return Parsed(outcome, None, f"at {shown!r}" if shown else "at the end")

    def _selections(self, start: int) -> list[_Selection]:
        """Each way to read what is selected, the best one first."""
        prefixes = [(0, start, True, False)]
        for agg, brackets, pattern in _AGGREGATES:
            prefix = pattern.match(self.text, start)
            if prefix:
                upper = prefix.group().startswith(AGGREGATES[agg])
                prefixes.append((agg, prefix.end(), upper, brackets))
        found = []
        for agg, place, upper, brackets in prefixes:
            for index, name in self.columns:
                for end, exact in name.match(self.text, place):
                    close = _CLOSE.match(self.text, end) if brackets else None
                    if brackets and not close:
                        continue
                    after = close.end() if close else end
                    if self.text.startswith(",", after):
                        self._failure(after, "unsupported")  # two columns
                    stop = _FROM.match(self.text, after)
                    if stop:
                        rank = (not (exact and upper), brackets, -len(name.text))
                        found.append(_Selection(rank, index, agg, stop.end()))
        return sorted(found, key=lambda selection: selection.rank)

    def _after_from(self, place: int) -> tuple[_Read, ...] | None:
        ends = [
            end for end, _ in self.table.match(self.text, place) if self.text[end : end + 1].strip(";").strip() == ""
        ]
        if not ends:
            self._failure(place, "wrong_table")
            return None
        if _END.match(self.text, ends[0]):
            return ()
        where = _WHERE.match(self.text, ends[0])
        if where:
            return self._conditions(where.end())
        self._failure(ends[0], self._other(ends[0]))
        return None

    def _other(self, place: int) -> ParseOutcome:
        return "unsupported" if _OTHER_CLAUSE.match(self.text, place) else "bad_syntax"

    def _conditions(self, start: int) -> tuple[_Read, ...] | None:
        """The conditions from `start` to the end of the text, or None; every place is read once."""
        if start not in self.read:
            self.read[start] = None
            self.read[start] = self._read_conditions(start)
        return self.read[start]

    def _read_conditions(self, start: int) -> tuple[_Read, ...] | None:
        columns = []
        for index, name in self.columns:
            for end, exact in name.match(self.text, start):
                operator = _OPERATOR.match(self.text, end)
                if operator:
                    columns.append((not exact, index, operator))
                elif _OTHER_OPERATOR.match(self.text, end):
                    self._failure(end, "unsupported")
        if not columns:
            self._failure(start, "unknown_column" if _SOME_CONDITION.match(self.text, start) else "bad_syntax")
        for _, index, operator in sorted(columns, key=lambda item: item[0]):
            sign = OPERATORS.index(operator.group(1) or "=")
            for value, literal, rest in self._values(operator.end(), self.types[index]):
                return (_Read(index, sign, value, literal), *rest)
        return None

    def _values(self, start: int, kind: str) -> list[tuple[Value, str, tuple[_Read, ...]]]:
        """The value from `start` on with the conditions behind it; nothing if it cannot be read."""
        quote = self.text[start : start + 1]
        if kind == "text" and quote in ("'", '"'):
            return self._text(start, quote)
        found = _REAL.match(self.text, start)
        if not found:
            self._failure(start, "bad_syntax")
            return []
        literal = found["quoted"] if found["bare"] is None else found["bare"]
        number = parse_number(literal) if kind == "real" else None
        value: Value = literal if number is None else number
        if _END.match(self.text, found.end()):
            return [(value, literal, ())]
        following = _AND.match(self.text, found.end())
        if not following:
            self._failure(found.end(), self._other(found.end()))
            return []
        rest = self._conditions(following.end())
        return [] if rest is None else [(value, literal, rest)]

    def _other_operator(self, start: int) -> bool:
        """Whether a column and an operator that no logical form has stand there."""
        ends = (end for _, name in self.columns for end, _ in name.match(self.text, start))
        return any(_OTHER_OPERATOR.match(self.text, end) for end in ends)

    def _text(self, start: int, quote: str) -> list[tuple[Value, str, tuple[_Read, ...]]]:
        end = start
        while (end := self.text.find(quote, end + 1)) != -1:
            literal = self.text[start + 1 : end]
            if _END.match(self.text, end + 1):
                return [(literal, literal, ())]
            following = _AND.match(self.text, end + 1)
            if not following:
                if _OTHER_CONDITION.match(self.text, end + 1):
                    self._failure(end + 1, "unsupported")
                    return []
                continue
            rest = self._conditions(following.end())
            if rest is not None:
                return [(literal, literal, rest)]
            if _SOME_CONDITION.match(self.text, following.end()) or self._other_operator(following.end()):
                return []
        self._failure(start, "bad_syntax")
        return []
