"""How to open an SQLite database so that nothing is written to it or beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlora.errors import SqloraError


@dataclass(frozen=True, slots=True)
class Addresses:
    """URIs for SQLite.

    Args:
        journal: for a database with a rollback journal.
        log: for one with a write-ahead log; None if its log holds changes that cannot be read without writing.
    """

    journal: str
    log: str | None


def read_only_addresses(database: Path) -> Addresses:
    """The URIs under which SQLite reads the file and writes nothing.

    Plain `mode=ro` is right with a rollback journal: SQLite locks against those who write. A write-ahead log is another
    matter, because opening one creates its two files. Where both exist already, they are read as they are. Where they
    do not, nobody has the database open and it is whole in itself, so `immutable=1`, which looks for neither locks nor
    logs, misses nothing. A log without its index is what a killed program left; to read that takes writing.
    `readonly_shm=1` matters: without it SQLite may reset an index that another program has mapped.
    Sources: https://sqlite.org/wal.html#read_only_databases, https://sqlite.org/uri.html.

    Which of the two a database has is for another process to find out: POSIX drops all locks that a process holds on a
    file as soon as it closes the file once, and this process may be writing to it.

    Args:
        database: an absolute path without symbolic links.

    Raises:
        SqloraError: no such file.
    """
    log, index = (database.with_name(database.name + suffix) for suffix in ("-wal", "-shm"))
    try:
        if not database.is_file():
            found = "no regular file" if database.exists() else "no such file"
            raise unreadable(database, found, "Check the path.")
        size = log.stat().st_size if log.exists() else None
        live = size is not None and index.exists()
    except OSError as error:
        raise unreadable(database, error.strerror or str(error), "Check the path and its permissions.") from None
    uri = database.as_uri() + "?mode=ro&readonly_shm=1"
    if live:
        return Addresses(uri, uri)
    return Addresses(uri, None if size else uri + "&immutable=1")


def unreadable(database: Path, found: str, next_step: str | None = None) -> SqloraError:
    """The error for a database that cannot be read."""
    return SqloraError(
        database,
        found=found,
        expected="an SQLite database that can be read without writing",
        next_step=next_step
        or "Make sure that it is whole and that no program is writing to it; if one was killed while it wrote, open "
        "the database once with that program or with sqlite3.",
    )
