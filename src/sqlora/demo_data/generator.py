"""Demo data in WikiSQL's layout: endless (table, questions) pairs from a seed, and an archive of fixed size."""

from __future__ import annotations

import bz2
import io
import itertools
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from sqlora.demo_data.domains.catalog import HELD_OUT_DOMAINS, SHARED_DOMAINS
from sqlora.demo_data.logical_forms import LogicalForm, draw_form
from sqlora.demo_data.questions import ask
from sqlora.demo_data.tables import DemoTable, draw_table

Record = dict[str, object]

QUESTIONS_PER_TABLE = 5
HELD_OUT_DOMAIN_SHARE = 0.1  # of the tables that may be of a held-out domain
_MTIME = 1512086400  # 2017-12-01, so that the archive's bytes depend on the seed only


@dataclass(frozen=True)
class Part:
    """A part of the archive; tables: None is as many as the caller wants; `held_out` lets it use domains and wordings
    that training data never has.
    """

    name: str
    tables: int | None
    held_out: bool


PARTS = (Part("train", None, False), Part("dev", 112, True), Part("test", 112, True))


def demo_examples(
    seed: int, *, tables: int | None = None, held_out: bool = False
) -> Iterator[tuple[Record, list[Record]]]:
    """Yields `tables` pairs (table, its questions), endlessly if None, as WikiSQL's JSON objects.

    A pure function of its arguments, the same on every platform and Python version; a shorter run is the start of a
    longer one. Ids and contents of the tables are distinct within a run. Without `held_out`, no pair has a
    held-out domain or wording, whatever the seed: data made so may train what the archive's dev and test measure.
    """
    for table, questions in _distinct(f"{seed}/{'held-out' if held_out else 'shared'}", held_out, tables, set()):
        yield table.record(), questions


def write_demo_archive(path: Path, seed: int, *, train_tables: int) -> None:
    """Writes {train,dev,test}.{jsonl,tables.jsonl} under data/ as a .tar.bz2; equal arguments give equal bytes.

    dev and test do not depend on `train_tables`, and fewer tables are the first of more.

    The file appears under its name only when it is complete.
    """
    buffer = io.BytesIO()
    seen: set[object] = set()
    pairs = {}
    for part in reversed(PARTS):  # train last, so that its number of tables changes no other part
        tables = train_tables if part.tables is None else part.tables
        pairs[part.name] = list(_distinct(f"{seed}/archive/{part.name}", part.held_out, tables, seen))
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in (part.name for part in PARTS):
            _add(archive, f"data/{name}.jsonl", [line for _, lines in pairs[name] for line in lines])
            _add(archive, f"data/{name}.tables.jsonl", [table.record() for table, _ in pairs[name]])
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(bz2.compress(buffer.getvalue(), 9))
    os.replace(partial, path)


def _distinct(
    key: str, held_out: bool, tables: int | None, seen: set[object]
) -> Iterator[tuple[DemoTable, list[Record]]]:
    """Pairs whose tables share neither id nor header and rows with what is in `seen`, which grows."""
    made = 0
    for index in itertools.count():
        if made == tables:
            return
        # A generator for each table: what one table draws never shifts the next.
        rng = Random(f"{key}/{index}")
        unfamiliar = held_out and rng.random() < HELD_OUT_DOMAIN_SHARE
        table = draw_table(rng, rng.choice(HELD_OUT_DOMAINS if unfamiliar else SHARED_DOMAINS))
        content = json.dumps([table.header, table.rows])
        if table.id in seen or content in seen:
            continue
        seen.update((table.id, content))
        made += 1
        yield table, _questions(rng, table, held_out)


def _questions(rng: Random, table: DemoTable, held_out: bool) -> list[Record]:
    questions: list[Record] = []
    forms: list[LogicalForm] = []
    while len(forms) < QUESTIONS_PER_TABLE:
        form = draw_form(rng, table)
        if form in forms:
            continue
        forms.append(form)
        questions.append(
            {"phase": 1, "table_id": table.id, "question": ask(rng, table, form, held_out), "sql": form.record()}
        )
    return questions


def _add(archive: tarfile.TarFile, name: str, records: list[Record]) -> None:
    content = "".join(json.dumps(record) + "\n" for record in records).encode("ascii")
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(content), _MTIME, 0o644
    archive.addfile(member, io.BytesIO(content))
