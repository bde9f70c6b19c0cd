"""Questions with tables and logical forms for pre-training: WikiSQL's train part, varied; synthetic ones; demo data.

Every draw gets a new random table id, other columns beside the ones it needs, and often other values and column names,
so that the only way to predict the query is to read the schema and the question.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from random import Random

AGGREGATES = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")


@dataclass(frozen=True)
class Item:
    """One question: `conds` are (column, operator index, value as text)."""

    table_id: str
    header: list[str]
    types: list[str]
    question: str
    sel: int
    agg: int
    conds: list[tuple[int, int, str]]
    pool: Pool


class Pool:
    """Headers and cells of the training tables, from which columns and values are drawn."""

    def __init__(self, tables: list[dict], questions: list[dict]) -> None:
        self.questions = questions
        self.tables = {table["id"]: table for table in tables}
        self.headers = [(name, kind) for table in tables for name, kind in zip(table["header"], table["types"])]
        self.cells = sorted(
            {
                str(cell)
                for table in tables
                for row in table["rows"]
                for cell, kind in zip(row, table["types"])
                if kind == "text" and 0 < len(str(cell)) < 60
            }
        )
        self.words = sorted({word for question in questions for word in re.findall(r"\w{2,}", question["question"])})

    @classmethod
    def from_wikisql(cls, folder: Path, *, part: str = "train") -> Pool:
        """Read one part of WikiSQL: train to learn from, dev for the held-out loss; test is never opened."""
        names = (f"{part}.tables.jsonl", f"{part}.jsonl")
        return cls(*([json.loads(line) for line in open(folder / name, encoding="utf-8")] for name in names))

    def value(self, rng: Random, kind: str) -> str:
        """A value of a column: a real cell, random words, a code, or a number of any size."""
        if kind == "real":
            return random_number(rng)
        draw = rng.random()
        if draw < 0.45:
            return rng.choice(self.cells)
        if draw < 0.75:
            words = [rng.choice(self.words) for _ in range(rng.randrange(1, 4))]
            return " ".join(word.title() if rng.random() < 0.7 else word for word in words)
        if draw < 0.9:
            return random_code(rng)
        return random_number(rng)


def random_number(rng: Random) -> str:
    """Numbers as WikiSQL's real columns have them: small counts, years, long ones, decimals."""
    draw = rng.random()
    if draw < 0.35:
        return str(rng.randrange(0, 100))
    if draw < 0.55:
        return str(rng.randrange(1850, 2025))
    if draw < 0.85:
        return str(rng.randrange(0, 10 ** rng.randrange(2, 9)))
    return f"{rng.randrange(0, 10 ** rng.randrange(1, 5))}.{rng.randrange(1, 10 ** rng.randrange(1, 3))}"


def random_code(rng: Random) -> str:
    """Strings that cannot be guessed, only copied: codes, scores, made-up words."""
    draw = rng.random()
    if draw < 0.3:
        return "".join(
            rng.choice("abcdefghijklmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ0123456789")
            for _ in range(rng.randrange(2, 9))
        )
    if draw < 0.6:
        digits = [str(rng.randrange(0, 10 ** rng.randrange(1, 4))) for _ in range(rng.randrange(2, 5))]
        return rng.choice(["-", "–", ".", "/", ":", " ", ", "]).join(digits)
    word = "".join(
        rng.choice(
            (
                "ba",
                "ko",
                "ri",
                "ne",
                "sha",
                "tu",
                "mel",
                "vor",
                "xi",
                "an",
                "dre",
                "lu",
                "gh",
                "st",
                "or",
                "ei",
                "qu",
                "zo",
                "pa",
                "fi",
            )
        )
        for _ in range(rng.randrange(2, 5))
    )
    return word.title() if rng.random() < 0.7 else word


def random_table_id(rng: Random) -> str:
    """Ids in WikiSQL's manner and in others, never the id that the table had."""
    draw = rng.random()
    if draw < 0.6:
        site = rng.randrange(1, 3)
        page = rng.randrange(10 ** rng.randrange(3, 5), 10 ** rng.randrange(5, 9))
        return f"{site}-{page}-{rng.randrange(1, 60)}"
    if draw < 0.8:
        separator = rng.choice("-_./")
        return separator.join(str(rng.randrange(0, 10 ** rng.randrange(1, 7))) for _ in range(rng.randrange(2, 5)))
    return random_code(rng).replace(" ", "_")


def wikisql_item(rng: Random, pool: Pool) -> Item:
    """A question of WikiSQL's train part with fresh surroundings."""
    entry = rng.choice(pool.questions)
    table = pool.tables[entry["table_id"]]
    conds = [(column, op, str(value)) for column, op, value in entry["sql"]["conds"]]
    return _vary(
        rng, pool, table["header"], table["types"], entry["question"], entry["sql"]["sel"], entry["sql"]["agg"], conds
    )


def demo_item(rng: Random, pool: Pool, table: dict, entry: dict) -> Item:
    """A question of the demo generator (other seeds than the demo data) with fresh surroundings."""
    conds = [(column, op, _text(value)) for column, op, value in entry["sql"]["conds"]]
    return _vary(
        rng, pool, table["header"], table["types"], entry["question"], entry["sql"]["sel"], entry["sql"]["agg"], conds
    )


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _vary(
    rng: Random,
    pool: Pool,
    header: list[str],
    types: list[str],
    question: str,
    sel: int,
    agg: int,
    conds: list[tuple[int, int, str]],
) -> Item:
    names = dict(enumerate(header))
    changed = []
    for column, op, value in conds:
        found = re.search(r"(?<!\w)" + re.escape(value) + r"(?!\w)", question, re.IGNORECASE)
        if found:
            if rng.random() < 0.5:
                value = pool.value(rng, types[column])
                question = question[: found.start()] + value + question[found.end() :]
            elif rng.random() < 0.85:
                value = found.group()  # the question's letter case, so that copying is what is learnt
        changed.append((column, op, value))
    used = {sel, *(column for column, _, _ in conds)}
    for column in used:
        # A renamed column teaches that names are read from the schema, not remembered.
        if rng.random() < 0.15 and len(names[column]) > 3:
            found = re.search(r"(?<!\w)" + re.escape(names[column]) + r"(?!\w)", question, re.IGNORECASE)
            if found:
                new = rng.choice(pool.headers)[0]
                if new not in header:
                    names[column] = new
                    question = question[: found.start()] + new.lower() + question[found.end() :]
    kept = [column for column in range(len(header)) if column in used or rng.random() < 0.7]
    columns = [(names[column], types[column], column) for column in kept]
    for _ in range(rng.choice((0, 0, 1, 2, 3))):
        name, kind = rng.choice(pool.headers)
        if all(name.lower() != other.lower() for other, _, _ in columns):
            columns.append((name, kind, -1))
    if rng.random() < 0.6:
        rng.shuffle(columns)
    place = {origin: new for new, (_, _, origin) in enumerate(columns)}
    return Item(
        random_table_id(rng),
        [c[0] for c in columns],
        [c[1] for c in columns],
        question,
        place[sel],
        agg,
        [(place[column], op, value) for column, op, value in changed],
        pool,
    )


_ASK = {
    0: ("What is the {}", "Which {}", "Name the {}", "What {}", "Tell me the {}", "Show the {}", "Give the {}", "{}"),
    1: ("What is the highest {}", "What is the maximum {}", "What is the largest {}", "Name the most {}", "most {}"),
    2: ("What is the lowest {}", "What is the minimum {}", "What is the smallest {}", "Name the least {}"),
    3: ("How many {}", "What is the number of {}", "Name the total number of {}", "How many {} are there"),
    4: ("What is the sum of {}", "What is the total {}", "What is the combined {}", "Add up the {}"),
    5: ("What is the average {}", "What is the mean {}", "Name the average {}"),
}
_OPEN = (" when ", " with ", " where ", " for ", " that has ", " if ", " whose ", " having ", ", with ", " in ")
_COND = {
    0: ("{c} is {v}", "{c} of {v}", "{c} {v}", "a {c} of {v}", "{v} as {c}", "the {c} was {v}", "{v}", "{v} {c}"),
    1: (
        "{c} is more than {v}",
        "{c} larger than {v}",
        "{c} over {v}",
        "a {c} greater than {v}",
        "more than {v} {c}",
        "{c} above {v}",
        "{c} after {v}",
        "{c} bigger than {v}",
    ),
    2: (
        "{c} is less than {v}",
        "{c} smaller than {v}",
        "{c} under {v}",
        "a {c} below {v}",
        "fewer than {v} {c}",
        "{c} before {v}",
        "{c} lower than {v}",
    ),
}


def synthetic_item(rng: Random, pool: Pool) -> Item:
    """A question put together from a random schema, so that names and values are arbitrary."""
    columns: dict[str, str] = {}
    while len(columns) < rng.randrange(2, 10):
        name, kind = rng.choice(pool.headers)
        if rng.random() < 0.08:
            name = random_code(rng)
        columns.setdefault(name, kind)
    header, types = list(columns), list(columns.values())
    sel = rng.randrange(len(header))
    agg = rng.choice((0, 0, 0, 3, 1, 2, 4, 5)) if types[sel] == "real" else rng.choice((0, 0, 0, 3))
    others = [column for column in range(len(header)) if column != sel]
    rng.shuffle(others)
    conds = []
    question = rng.choice(_ASK[agg]).format(header[sel] if rng.random() < 0.5 else header[sel].lower())
    for number, column in enumerate(others[: rng.choice((0, 1, 1, 1, 1, 2, 2, 2, 3, 4))]):
        op = rng.choice((0, 1, 2)) if types[column] == "real" else 0
        value = pool.value(rng, types[column])
        name = header[column] if rng.random() < 0.5 else header[column].lower()
        phrase = rng.choice(_COND[op])
        if "{c}" not in phrase and len(header) > 3 and rng.random() < 0.8:
            phrase = "{c} {v}"
        question += rng.choice(_OPEN) if number == 0 else rng.choice((" and ", ", and ", ", ", " and "))
        question += phrase.replace("{c}", name).replace("{v}", value)
        conds.append((column, op, value))
    question = question[0].upper() + question[1:] if rng.random() < 0.7 else question
    return Item(
        random_table_id(rng), header, types, question + rng.choice(("?", "?", "", " ", ".")), sel, agg, conds, pool
    )
