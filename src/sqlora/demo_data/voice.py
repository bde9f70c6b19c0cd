"""How one speaker talks: which wordings a question uses, and how it names columns, values and rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from sqlora.demo_data import values
from sqlora.demo_data.schema import Cell, Column, Forms
from sqlora.demo_data.tables import DemoTable

# How often a speaker who may use a held-out wording does so where there is one.
_HELD_SHARE = 0.1

# "!" marks wordings that only held-out questions use.
REQUESTS = (
    "name", "tell me", "give", "give me", "find", "show", "show me", "list", "I want to know",
    "I need", "what's", "can you tell me", "please tell me", "!I'm looking for", "!do you know",
    "!could you look up", "!would you find me", "!I'd like to hear",
)  # fmt: skip


@dataclass(frozen=True)
class Voice:
    """The speaker of one question: what stays the same in all of its parts."""

    rng: Random
    held: bool
    past: bool
    quotes: bool
    formality: float  # 0 calls columns by everyday nouns, 1 by their headers

    @staticmethod
    def draw(rng: Random, held: bool) -> Voice:
        return Voice(rng, held, rng.random() < 0.5, rng.random() < 0.06, rng.random())

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def pick(self, alternatives: Sequence[str]) -> str:
        """One of the alternatives; those marked "!" only where held-out wordings are wanted."""
        rare = [text[1:] for text in alternatives if text.startswith("!")]
        if self.held and rare and self.chance(_HELD_SHARE):
            return self.rng.choice(rare)
        return self.rng.choice([text for text in alternatives if not text.startswith("!")])

    def form(self, forms: Forms) -> str:
        if self.held and forms.held and self.chance(_HELD_SHARE):
            return self.rng.choice(forms.held)
        return self.rng.choice(forms.common)

    def be(self, noun: str = "", plural: bool = False) -> str:
        last = noun.split(" (")[0].rstrip("?.")
        many = plural or (last.endswith("s") and not last.endswith(("ss", "us", "is")) and " of " not in last)
        return ("were" if many else "was") if self.past else ("are" if many else "is")

    def have(self, plural: bool = False) -> str:
        return "had" if self.past else ("have" if plural else "has")

    def do(self, plural: bool = False) -> str:
        return "did" if self.past else ("do" if plural else "does")


def open_question(voice: Voice, noun: str, one: bool = False) -> str:
    """'What is the', 'Tell me the' for a noun; `one` if there is one answer, which nobody would list."""
    if voice.chance(0.6):
        return f"{'which' if voice.chance(0.12) else 'what'} {voice.be(noun)} the"
    request = voice.pick(REQUESTS)
    if request == "list" and one:
        request = "find"
    if request == "what's" and voice.be(noun) in ("are", "were"):
        request = "what are"
    return f"{request} the"


def label(voice: Voice, table: DemoTable, index: int, noun_only: bool = False) -> str:
    """A name for a column that can follow "the": its header or a noun for it."""
    column, header = table.columns[index], table.header[index]
    share = 0.15 + 0.7 * voice.formality
    if _reads_badly(header):
        share *= 0.12
    if noun_only or not voice.chance(share):
        noun = voice.form(column.nouns)
        return f"number of {noun}" if column.kind == "count" else noun
    if "(" in header and voice.chance(0.6):
        header = header.split("(")[0].strip()
    return header if voice.chance(0.6) else header.lower()


def value(voice: Voice, column: Column, cell: Cell) -> str:
    """A value as it is written in a question; a text value is always the cell's own text."""
    if isinstance(cell, str):
        return f'"{cell}"' if voice.quotes and '"' not in cell else cell
    if isinstance(cell, int) and cell >= 1000 and column.kind in ("count", "measure") and voice.chance(0.35):
        return f"{cell:,}"
    return str(cell)


def row_noun(voice: Voice, table: DemoTable, plural: bool = False) -> str:
    return voice.form(table.domain.rows).split("/")[plural]


def with_article(noun: str) -> str:
    """'an album', 'a unit'."""
    low = noun.lower()
    vowel = low[:1] in tuple("aeiou") and not low.startswith(("uni", "use", "u.s", "us ", "one", "eu"))
    return f"{'an' if vowel or low.startswith(('nba', 'hq', 'lp', 'hour')) else 'a'} {noun}"


def is_about_people(table: DemoTable) -> bool:
    return table.domain.columns[0].make is values.person


def _reads_badly(header: str) -> bool:
    """Whether a header makes an odd noun: '#', 'No.', 'Written by', 'Founded', 'Closed on'."""
    plain = header.split(" (")[0].lower().rstrip("?")
    if plain in (
        "#",
        "no.",
        "no",
        "%",
        "est.",
        "pos",
        "pos.",
        "start",
        "noc",
        "serves",
        "km",
        "nat.",
        "h / a",
        "won by",
        "minutes",
    ):
        return True
    return plain.endswith(("ed", " by", " in", " on", " for", " as", " at", "commissioned", "#", "/retired", "?"))
