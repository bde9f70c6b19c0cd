"""Reads files to the last byte and hashes them, believing neither DVC's notes nor a file's date."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from sqlora.verify.expected import Store

_CHUNK = 1 << 20


class Hasher:
    """Hashes by md5; a file that has several names is read once.

    Args:
        report: is called with the number of bytes after each piece.
    """

    def __init__(self, report: Callable[[int], object]) -> None:
        self._report = report
        self._known: dict[tuple[int, int], str] = {}

    def file(self, path: Path) -> str | None:
        """The md5 of a file, or None if there is none."""
        try:
            status = path.stat()
            inode = (status.st_dev, status.st_ino)
            if inode in self._known:
                self._report(status.st_size)
            else:
                with open(path, "rb") as file:
                    self._known[inode] = self._all(file)
            return self._known[inode]
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            return f"nothing readable ({error.strerror})"

    def object(self, store: Store, oid: str) -> str | None:
        """The md5 of an object, or None if there is none."""
        if store.local:
            return self.file(Path(store.path(oid)))
        try:
            with store.odb.fs.open(store.path(oid), "rb") as file:
                return self._all(file)
        except FileNotFoundError:
            return None
        except OSError as error:
            return f"nothing readable ({error.strerror or type(error).__name__})"

    def _all(self, file: IO[bytes] | Any) -> str:
        digest = hashlib.md5(usedforsecurity=False)
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            self._report(len(chunk))
        return digest.hexdigest()


def content_of(store: Store, oid: str) -> bytes | None:
    """An object's bytes, of a small one; None if there is none that can be read."""
    try:
        with store.odb.fs.open(store.path(oid), "rb") as file:
            return bytes(file.read())
    except OSError:
        return None


def files_below(folder: Path) -> dict[str, Path]:
    """Path in the folder -> file."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
