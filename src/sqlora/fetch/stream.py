"""A tar's bytes behind its compression, read once from front to back and within limits."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import tarfile
from collections.abc import Callable
from typing import IO, cast

BLOCK = 512
_CHUNK = 1 << 20
_MAX_HEADERS = 1 << 16  # bytes, of one member, pax records included: tarfile holds them in memory
# Before Python 3.11.10, tarfile's time and memory for hostile pax records grow with the square of their size
# (CVE-2024-6232).
_PAX_TYPES = (b"x", b"g", b"X")
_LONG_NUMBER = re.compile(rb"[0-9]{1000}")
_RECORD_LENGTH = re.compile(rb"([0-9]{1,6}) ")


class TooLargeError(Exception):
    """The archive holds more than it may."""


class Content(io.RawIOBase):
    """The decompressed content of an archive, as a file object for tarfile.

    `read` is for tarfile, which reads headers only; a member's bytes are read with `take`. Going backwards, which a
    negative size makes tarfile do for ever, is an error, and so is a byte beyond `max_bytes`, read or skipped.

    Args:
        raw: the archive, opened at its first byte.
        max_bytes: of content.
        report: is called after each read.

    Attributes:
        last_read: what tarfile read last.
    """

    def __init__(self, raw: IO[bytes], max_bytes: int, report: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self._source = _decompressed(raw)
        self._max_bytes = max_bytes
        self._report = report
        self._position = 0
        self._headers_left = _MAX_HEADERS
        self.last_read = b""

    def next_member(self) -> None:
        """Allow as many bytes of headers as one member may have."""
        self._headers_left = _MAX_HEADERS

    def take(self, size: int) -> bytes:
        """At most `size` bytes; fewer only at the end."""
        if self._position + size > self._max_bytes:
            size = self._max_bytes + 1 - self._position  # one too many shows whether there are any
        data = self._source.read(size)
        self._position += len(data)
        self._report()
        if self._position > self._max_bytes:
            raise TooLargeError
        return data

    def read(self, size: int = -1, /) -> bytes:
        """A header for tarfile."""
        if not 0 <= size <= self._headers_left:
            raise tarfile.ReadError(f"headers of more than {_MAX_HEADERS} bytes")
        self._headers_left -= size
        pax = self.last_read[156:157] in _PAX_TYPES
        self.last_read = self.take(size)
        if pax:
            _require_records(self.last_read)
        return self.last_read

    def seek(self, position: int, whence: int = io.SEEK_SET, /) -> int:
        """Skip forward to a position, or to the end if that comes first."""
        if position < self._position or whence != io.SEEK_SET:
            raise tarfile.ReadError("a header that points backwards")
        if position > self._max_bytes:
            raise TooLargeError
        while self._position < position and self.take(min(position - self._position, _CHUNK)):
            pass
        return self._position

    def tell(self) -> int:
        return self._position


def _require_records(body: bytes) -> None:
    """Check that pax records, each "<length> <keyword>=<value>\\n", lie one behind the other."""
    if _LONG_NUMBER.search(body):
        raise tarfile.ReadError("a header with an endless number")
    start = 0
    while match := _RECORD_LENGTH.match(body, start):
        end = start + int(match[1])
        if b"=" not in body[match.end() : end] or body[end - 1 : end] != b"\n":
            raise tarfile.ReadError("a pax record of a wrong length")
        start = end


def _decompressed(raw: IO[bytes]) -> IO[bytes]:
    start = raw.read(6)
    raw.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.open(raw))
    if start.startswith(b"BZh"):
        return cast(IO[bytes], bz2.open(raw))
    if start.startswith((b"\xfd7zXZ\x00", b"\x5d\x00\x00")):
        return cast(IO[bytes], lzma.open(raw))
    return raw
