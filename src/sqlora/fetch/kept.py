"""Remembers which files came of a download, so that they are taken out of DVC's cache instead of downloaded again."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TypeGuard

from sqlora.fetch.archive import linked
from sqlora.fetch.cache import DvcCache
from sqlora.fetch.checksum import hash_file
from sqlora.publish import publish_file

MEMBERS = Path(".sqlora/members")


def keep(key: str, folder: Path, cache: DvcCache | None) -> bool:
    """Put the files of a folder into DVC's cache and note under `key` which they are.

    Returns:
        Whether the download may go: False if the cache cannot have them without a second copy.
    """
    if cache is None:
        return False
    note: dict[str, dict[str, int | str]] = {}
    for path in sorted(folder.iterdir()):
        with open(path, "rb") as file:
            os.fsync(file.fileno())  # before the download goes
        md5 = hash_file(path, "md5")
        if not cache.put(path, md5):
            return False
        note[path.name] = {"size": path.stat().st_size, "md5": md5}
    with publish_file(MEMBERS / f"{key}.json") as partial:
        partial.write_text(json.dumps({"files": note}, indent=1) + "\n", encoding="utf-8")
    return True


def restore(key: str, folder: Path, cache: DvcCache | None) -> bool:
    """Put the files noted under `key` into `folder`, if DVC's cache still has them all, each with the right bytes."""
    note = _read(MEMBERS / f"{key}.json")
    if cache is None or note is None:
        return False
    places = {name: cache.path(md5) for name, (size, md5) in note.items()}
    if not all(_has_size(places[name], size) for name, (size, _) in note.items()):
        return False
    for name, (_, md5) in note.items():
        if hash_file(places[name], "md5") != md5:
            print(f"{places[name]}: damaged, so it is deleted and fetched again", file=sys.stderr, flush=True)
            places[name].unlink()  # DVC never looks into a read-only object and would hand out the damaged one
            return False
    for name, place in places.items():
        if not linked(place, folder / name):
            shutil.copyfile(place, folder / name)
    return True


def _read(path: Path) -> dict[str, tuple[int, str]] | None:
    """Name -> (size in bytes, md5) of each file of a note; None if there is none or it makes no sense."""
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        note = {name: (entry["size"], entry["md5"]) for name, entry in files.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return note if note and all(Path(name).name == name and _is_entry(entry) for name, entry in note.items()) else None


def _is_entry(entry: tuple[object, object]) -> TypeGuard[tuple[int, str]]:
    size, md5 = entry
    return type(size) is int and isinstance(md5, str) and len(md5) == 32 and md5.isalnum()


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False
