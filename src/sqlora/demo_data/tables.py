"""Tables of the demo data: a choice of a domain's columns, spelt one way, with rows."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from sqlora.demo_data import values
from sqlora.demo_data.schema import Cell, Column, Domain

MIN_COLUMNS, MAX_COLUMNS = 4, 9
MIN_ROWS, MAX_ROWS = 6, 20


@dataclass(frozen=True)
class DemoTable:
    """A table together with what the questions about it are phrased from."""

    id: str
    domain: Domain
    columns: tuple[Column, ...]
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    page_title: str

    def record(self) -> dict[str, object]:
        """The table as a line of WikiSQL's *.tables.jsonl."""
        return {
            "id": self.id,
            "header": list(self.header),
            "types": ["real" if column.real else "text" for column in self.columns],
            "rows": [list(row) for row in self.rows],
            "page_title": self.page_title,
            "section_title": "",
            "caption": "",
            "name": "table_" + self.id.replace("-", "_"),
        }


def draw_table(rng: Random, domain: Domain) -> DemoTable:
    """A random table of the domain; two draws may share an id, which the caller has to rule out."""
    year = rng.randrange(1960, 2023)
    columns = _choose_columns(rng, domain)
    header = tuple(_spell(rng, column, year) for column in columns)
    size = rng.randrange(MIN_ROWS, MAX_ROWS + 1)
    cells = [_cells(rng, column, size) for column in columns]
    title = rng.choice(domain.page_titles).format(
        y=year,
        n=rng.randrange(1, 40),
        letter=rng.choice("ABCDEFGHKLMNPRSTVWZ"),
        team=values.team(rng),
        town=values.town(rng),
        country=values.country(rng),
        person=values.person(rng),
        title=values.title(rng),
    )
    return DemoTable(_draw_id(rng), domain, columns, header, tuple(zip(*cells, strict=True)), title)


def _draw_id(rng: Random) -> str:
    """An id that looks like WikiSQL's: '1-1000181-1', page numbers of four to eight digits."""
    digits = rng.randrange(4, 9)
    page = rng.randrange(10 ** (digits - 1), 10**digits)
    number = 1 + int(rng.random() ** 3 * 20)
    return f"{1 if rng.random() < 0.6 else 2}-{page}-{number}"


def _choose_columns(rng: Random, domain: Domain) -> tuple[Column, ...]:
    name, others = domain.columns[0], list(domain.columns[1:])
    size = min(rng.randrange(MIN_COLUMNS, MAX_COLUMNS + 1), len(domain.columns))
    with_name = rng.random() < 0.92
    rng.shuffle(others)
    chosen = others[: size - with_name]
    # Every table has both types, whatever its size, so that every kind of question is possible.
    for wanted in (True, False):
        if all(column.real is not wanted for column in chosen):
            chosen[-1] = next(column for column in others if column.real is wanted)
    if rng.random() < 0.4:
        chosen.sort(key=domain.columns.index)
    if with_name:
        chosen.insert(0 if rng.random() < 0.6 else rng.randrange(len(chosen) + 1), name)
    return tuple(chosen)


def _spell(rng: Random, column: Column, year: int) -> str:
    spelling = rng.choice(column.headers).format(y=year)
    return spelling.lower() if rng.random() < 0.05 else spelling


def _cells(rng: Random, column: Column, size: int) -> list[Cell]:
    if column.make is values.serial:
        start = values.serial(rng)
        return [start + i for i in range(size)]
    if column.kind == "name":
        names: list[Cell] = []
        while len(names) < size:
            name = column.make(rng)
            if name not in names:
                names.append(name)
        return names
    if column.kind in ("person", "place", "category"):
        # A pool smaller than the table makes values repeat, so that counting them is worth a question.
        share = 0.3 if column.kind == "category" else 0.4 + 0.6 * rng.random()
        pool = [column.make(rng) for _ in range(max(3, int(size * share)))]
        return [rng.choice(pool) for _ in range(size)]
    cells = [column.make(rng) for _ in range(size)]
    if column.kind == "year" and rng.random() < 0.3:
        cells.sort(key=float)
    return cells
