"""What a domain of the demo data is made of: columns, how people mention them, and where their cells come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

Cell = str | int | float
Maker = Callable[[Random], Cell]
TextKind = Literal["name", "person", "place", "category", "date", "code"]
RealKind = Literal["year", "count", "measure", "number"]


@dataclass(frozen=True)
class Forms:
    """Interchangeable wordings; `held` ones are kept from training data, so that a test question can use
    words that no training question has."""

    common: tuple[str, ...]
    held: tuple[str, ...]


@dataclass(frozen=True)
class Column:
    """A column that a table of the domain may have.

    `headers` are its spellings ("{y}" stands for a year drawn once a table); `nouns` how a question names it
    (plural if the kind is "count"); `asks` are whole questions for it, with "{e}" where the row is described;
    `mods` describe a row by this column's value "{v}" and follow the row's noun, and so do `over` and `under` for
    a value above and below "{v}"; `top` and `bottom` are superlatives. A mod that starts with "that" or "who"
    is also used as a verb phrase, so its verb must suit singular and plural ("that opened in {v}").
    """

    headers: tuple[str, ...]
    kind: TextKind | RealKind
    make: Maker
    nouns: Forms
    asks: Forms
    mods: Forms
    over: Forms
    under: Forms
    top: Forms
    bottom: Forms

    @property
    def real(self) -> bool:
        return self.kind in ("year", "count", "measure", "number")


@dataclass(frozen=True)
class Domain:
    """A kind of table. `columns[0]` names the row; `rows` are nouns for a row, each "singular/plural"."""

    key: str
    rows: Forms
    page_titles: tuple[str, ...]
    columns: tuple[Column, ...]
    held_out: bool = False


def forms(alternatives: str) -> Forms:
    """'a|b|!c' as Forms: c is held out."""
    parts = [part.strip() for part in alternatives.split("|") if part.strip()]
    return Forms(
        tuple(part for part in parts if not part.startswith("!")),
        tuple(part[1:] for part in parts if part.startswith("!")),
    )


def text(kind: TextKind, headers: str, make: Maker, nouns: str, *, asks: str = "", mods: str = "") -> Column:
    """A column of strings; alternatives are separated by '|'."""
    none = Forms((), ())
    return Column(tuple(headers.split("|")), kind, make, forms(nouns), forms(asks), forms(mods), none, none, none, none)


def real(
    kind: RealKind,
    headers: str,
    make: Maker,
    nouns: str,
    *,
    asks: str = "",
    mods: str = "",
    over: str = "",
    under: str = "",
    top: str = "",
    bottom: str = "",
) -> Column:
    """A column of numbers; alternatives are separated by '|'."""
    return Column(
        tuple(headers.split("|")),
        kind,
        make,
        forms(nouns),
        forms(asks),
        forms(mods),
        forms(over),
        forms(under),
        forms(top),
        forms(bottom),
    )
