"""Checksums that params.yaml may give for a download."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sqlora.errors import SqloraError
from sqlora.progress import progress

_DIGITS = {"md5": 32, "sha1": 40, "sha256": 64, "gitblob": 40}
_CHUNK = 1 << 20


class Hash(Protocol):
    """What hashlib makes."""

    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


@dataclass(frozen=True)
class Checksum:
    """kind: md5, sha1, sha256 or gitblob (git's blob id, which GitHub shows for a file).

    digits: lower-case hexadecimal.
    """

    kind: str
    digits: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.digits}"


def read_checksum(section: str, text: str | None) -> Checksum | None:
    """Parse the checksum in a section of params.yaml; None stands for no check."""
    if text is None:
        return None
    kind, _, digits = text.lower().partition(":")
    if kind not in _DIGITS or not re.fullmatch(rf"[0-9a-f]{{{_DIGITS[kind]}}}", digits):
        raise SqloraError(
            f"params.yaml, {section}.checksum",
            found=repr(text),
            expected=" or ".join(f"{name}:<{length} hexadecimal digits>" for name, length in _DIGITS.items()),
            next_step="Correct the checksum, or set it to null for no check.",
        )
    return Checksum(kind, digits)


def new_hash(kind: str, size: int) -> Hash:
    """An empty hash of a kind for a file of `size` bytes."""
    if kind != "gitblob":
        return hashlib.new(kind, usedforsecurity=False)
    # Git hashes the size before the content: git-scm.com/book/en/v2/Git-Internals-Git-Objects
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def update_from(digest: Hash, path: Path) -> None:
    """Feed a whole file to a hash, under a progress bar."""
    with (
        open(path, "rb") as file,
        progress(f"check {path.name}", total=path.stat().st_size, unit="B", bytes_=True) as bar,
    ):
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))


def hash_file(path: Path, kind: str) -> str:
    """The hash of a file, in hexadecimal."""
    digest = new_hash(kind, path.stat().st_size)
    update_from(digest, path)
    return digest.hexdigest()
