"""A download that is not complete yet, kept on disk so that a later run goes on with it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from sqlora.fetch.checksum import Checksum, Hash, hash_file, new_hash, update_from
from sqlora.fetch.failure import shown
from sqlora.publish import publish_file


class Part:
    """The bytes in `<target>.part`, and in `<target>.part.json` where they came from.

    Args:
        target: the name that the complete and verified file gets.
        checksum: what it must match in the end, or None.

    Attributes:
        total: size of the complete file in bytes, or None if no server told.
    """

    def __init__(self, target: Path, checksum: Checksum | None) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self.total: int | None = None
        self._note = target.with_name(f"{target.name}.part.json")
        self._checksum = checksum
        self._url: str | None = None
        self._validator: str | None = None
        self._hash: Hash | None = None
        self._read_note()

    @property
    def size(self) -> int:
        """Bytes that are here."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def complete(self) -> bool:
        """Whether all bytes are known to be here."""
        return bool(self.total) and self.size == self.total

    @property
    def resumable(self) -> bool:
        """Whether something tells bytes of another version from these: the server's validator or our checksum."""
        return self._validator is not None or self._checksum is not None

    def range_headers(self, url: str) -> dict[str, str]:
        """The headers that ask for what is missing; none if the download must start at its first byte."""
        if not self.size:
            return {}
        headers = {"Range": f"bytes={self.size}-"}
        # Another mirror has validators of its own; only the checksum can tell whether its bytes fit.
        if self._validator is not None and self._url == shown(url):
            headers["If-Range"] = self._validator
        return headers

    def start(self, url: str, validator: str | None, total: int | None) -> None:
        """Throw away what is here and note where the new bytes will come from."""
        self.discard()  # first: the old bytes must never lie beside the new note
        self.total, self._url, self._validator = total, shown(url), validator
        with publish_file(self._note) as path:
            note = {"url": self._url, "validator": validator, "total": total}
            path.write_text(json.dumps(note) + "\n", encoding="utf-8")

    def append(self, chunks: Iterable[bytes]) -> None:
        """Write the chunks behind what is here; whatever ends them, those that came are kept."""
        self._begin_hash()
        with open(self.path, "ab") as file:
            for chunk in chunks:
                file.write(chunk)
                if self._hash is not None:
                    self._hash.update(chunk)

    def digest(self) -> str:
        """The hash of all bytes, of the checksum's kind, in hexadecimal."""
        assert self._checksum is not None
        return self._hash.hexdigest() if self._hash is not None else hash_file(self.path, self._checksum.kind)

    def publish(self) -> Path:
        """Give the file its final name."""
        with open(self.path, "rb+") as file:
            os.fsync(file.fileno())  # a power cut must not leave the final name over incomplete bytes
        os.replace(self.path, self.target)
        self._note.unlink()
        return self.target

    def move_to(self, place: Path) -> None:
        """Take the bytes out of the way without losing them."""
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self.path, place)
        self.discard()

    def discard(self) -> None:
        """Delete what is here."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)
        self.total = self._url = self._validator = self._hash = None

    def _read_note(self) -> None:
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            total, url, validator = note["total"], note["url"], note["validator"]
        except (OSError, ValueError, LookupError, TypeError):
            self.discard()
            return
        if isinstance(url, str) and isinstance(validator, str | None) and type(total) in (int, type(None)):
            self.total, self._url, self._validator = total, url, validator
        if self._url is None or not self.resumable or (self.total is not None and self.size > self.total):
            self.discard()

    def _begin_hash(self) -> None:
        # A git blob's hash begins with the size: where that is unknown, the file is hashed in the end.
        if self._hash is not None or self._checksum is None or (self._checksum.kind == "gitblob" and not self.total):
            return
        self._hash = new_hash(self._checksum.kind, self.total or 0)
        if self.size:
            update_from(self._hash, self.path)
