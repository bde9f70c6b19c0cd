"""Makers of cell values: each draws one value from a random generator, composed so that few repeat across tables.

Only random(), randrange() and choice() are used: their results are the same on every supported Python.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

from sqlora.demo_data import vocabulary as words
from sqlora.demo_data.schema import Maker


def person(rng: Random) -> str:
    """'Clara O'Brien', 'J. P. Moreau', 'Omar Reid, Jr.'."""
    given = rng.choice(words.GIVEN)
    surname = rng.choice(words.SURNAMES).replace("&", " ")
    draw = rng.random()
    if draw < 0.04:
        return f"{given[0]}. {rng.choice('ABCDEFGHJKLMPRSTW')}. {surname}"
    if draw < 0.10:
        return f"{given} {rng.choice('ABCDEFGHJKLMPRSTW')}. {surname}"
    if draw < 0.12:
        return f"{given} {surname}, Jr."
    if draw < 0.14:
        return f'{given} "{rng.choice(words.NOUNS)}" {surname}'
    return f"{given} {surname}"


def town(rng: Random) -> str:
    """'Ashford', 'Port Milbury', 'Land's End'."""
    draw = rng.random()
    if draw < 0.10:
        return rng.choice(words.ODD_PLACES)
    name = rng.choice(words.STEMS) + rng.choice(words.ENDINGS)
    return f"{rng.choice(words.PLACE_PREFIXES)} {name}" if draw < 0.28 else name


def town_and_state(rng: Random) -> str:
    """'Ashford, Ohio'."""
    return f"{town(rng)}, {rng.choice(words.STATES)}"


def country(rng: Random) -> str:
    return rng.choice(words.COUNTRIES)


def title(rng: Random) -> str:
    """A title of a work: 'The Hollow Bridge', 'Rosa's Promise', 'Rain over Ashford'."""
    adjective, noun, other = rng.choice(words.ADJECTIVES), rng.choice(words.NOUNS), rng.choice(words.NOUNS)
    patterns = (
        f"The {adjective} {noun}",
        f"{adjective} {noun}",
        f"The {noun} and the {other}",
        f"{rng.choice(words.GIVEN)}'s {noun}",
        f"{noun} over {town(rng)}",
        f"A {noun} for {rng.choice(words.GIVEN)}",
        f"{noun} of the {adjective} {other}",
        f"No {noun}, No {other}",
        f"{noun} {rng.randrange(2, 100)}",
        f"Don't Wake the {noun}",
        f"{other}-{noun}",
        f"Who Stole the {adjective} {noun}?" if rng.random() < 0.2 else f"Beyond the {adjective} {noun}",
    )
    return rng.choice(patterns)


def team(rng: Random) -> str:
    """'Ashford Badgers', 'Milbury United'."""
    if rng.random() < 0.5:
        return f"{town(rng)} {rng.choice(words.MASCOTS)}"
    return f"{town(rng)} {rng.choice(('United', 'City', 'Rovers', 'Athletic', 'Wanderers', 'F.C.', 'Town', 'Albion'))}"


def college(rng: Random) -> str:
    """'Ashford State', 'University of Milbury', 'St. Clara's College'."""
    place = town(rng)
    return rng.choice(
        (
            f"{place} State",
            f"University of {place}",
            f"{place} College",
            f"{rng.choice(words.STATES)} Tech",
            f"St. {rng.choice(words.GIVEN)}'s College",
            f"{place} (HS)",
        )
    )


def company(rng: Random) -> str:
    """'Novacore Systems', 'Byrne & Lund', 'Vertex-Polar Ltd.'."""
    first, second = rng.choice(words.COMPANY_WORDS), rng.choice(words.COMPANY_WORDS)
    tail = rng.choice(words.COMPANY_TAILS)
    surname = rng.choice(words.SURNAMES).replace("&", " ")
    return rng.choice(
        (
            f"{first}{second.lower()} {tail}",
            f"{first} {second} {tail}",
            f"{surname} & {rng.choice(words.SURNAMES).replace('&', ' ')}",
            f"{surname} {tail}",
            f"{surname}'s {tail}",
            f"{first}-{second} {tail}",
        )
    )


def date(rng: Random) -> str:
    """'March 3, 1998', '3 March 1998', '1998-03-03'."""
    month, day, year = rng.randrange(12), rng.randrange(1, 29), rng.randrange(1950, 2024)
    style = rng.random()
    if style < 0.7:
        return f"{words.MONTHS[month]} {day}, {year}"
    if style < 0.93:
        return f"{day} {words.MONTHS[month]} {year}"
    return f"{year}-{month + 1:02d}-{day:02d}"


def day(rng: Random) -> str:
    """'April 14'."""
    return f"{rng.choice(words.MONTHS)} {rng.randrange(1, 29)}"


def one_of(alternatives: str) -> Maker:
    """A maker that picks one of 'a|b|c'."""
    choices = tuple(alternatives.split("|"))
    return lambda rng: rng.choice(choices)


def composed(alternatives: str) -> Maker:
    """A maker that fills in one of '{town} Road|{surname} Street'; the blanks are the names below."""
    choices = tuple(alternatives.split("|"))
    parts: dict[str, Callable[[Random], str]] = {
        "town": town,
        "surname": lambda rng: rng.choice(words.SURNAMES).replace("&", " "),
        "given": lambda rng: rng.choice(words.GIVEN),
        "adjective": lambda rng: rng.choice(words.ADJECTIVES),
        "noun": lambda rng: rng.choice(words.NOUNS),
        "stem": lambda rng: rng.choice(words.STEMS),
        "ending": lambda rng: rng.choice(words.ENDINGS),
        "word": lambda rng: rng.choice(words.COMPANY_WORDS),
        "mascot": lambda rng: rng.choice(words.MASCOTS),
        "n": lambda rng: str(rng.randrange(1, 40)),
    }
    return lambda rng: re.sub(r"\{(\w+)\}", lambda blank: parts[blank[1]](rng), rng.choice(choices))


def code(pattern: str) -> Maker:
    """A maker of codes: '#' becomes a digit, '@' a capital letter; alternatives are separated by '|'."""
    patterns = tuple(pattern.split("|"))

    def make(rng: Random) -> str:
        out = []
        for char in rng.choice(patterns):
            if char == "#":
                char = str(rng.randrange(10))
            elif char == "@":
                char = rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ")
            out.append(char)
        return "".join(out)

    return make


def score(low: int, high: int, form: str = "{}–{}") -> Maker:
    """A maker of scores such as '3–1'; the form may have more than two blanks."""
    blanks = form.count("{}")
    return lambda rng: form.format(*(rng.randrange(low, high) for _ in range(blanks)))


def whole(low: int, high: int, step: int = 1) -> Maker:
    """A maker of integers in [low, high), multiples of step away from low."""
    return lambda rng: rng.randrange(low, high, step)


def wide(low: int, high: int) -> Maker:
    """A maker of integers whose size varies by orders of magnitude, such as populations or votes."""

    def make(rng: Random) -> int:
        top = low
        while top < high and rng.random() < 0.75:
            top *= 3
        return rng.randrange(low, max(low + 1, min(top * 3, high)))

    return make


def decimal(low: int, high: int, digits: int = 1) -> Maker:
    """A maker of decimals in [low, high); drawn as integers, so that the same float comes out everywhere."""
    scale = 10**digits
    return lambda rng: rng.randrange(low * scale + 1, high * scale) / scale


def serial(rng: Random) -> int:
    """The start of a column that counts up from row to row."""
    return 1 if rng.random() < 0.6 else rng.randrange(1, 120)
