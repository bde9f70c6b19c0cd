"""Small tars, good and bad, for the tests of the fetch stages."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

CONTENT = {"a.bin": bytes(range(256)) * 9000, "b.json": b"{}"}
NAMES = tuple(CONTENT)
Member = tuple[tarfile.TarInfo, io.BytesIO]


def member(name: str, content: bytes = b"", **fields: object) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, io.BytesIO(content)


def wanted() -> list[Member]:
    return [member(f"./some/folder/{name}", content) for name, content in CONTENT.items()]


def write_members(path: Path, *members: Member, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for info, content in members:
            archive.addfile(info, content)
    return path


def good_tar(path: Path, mode: str = "w") -> Path:
    return write_members(path, *wanted(), mode=mode)


def raw_header(name: str, size: int | bytes, *, kind: bytes = b"0") -> bytes:
    """A header whose size field may hold anything, with a checksum that is right."""
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    header[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    header[156:157] = kind
    return fix_checksum(header)


def fix_checksum(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)
