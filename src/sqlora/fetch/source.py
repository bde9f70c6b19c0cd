"""Brings a model or a data set here from a path or a URL."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlora.errors import SqloraError
from sqlora.fetch.checksum import Checksum, hash_file, read_checksum
from sqlora.fetch.download import RoomFor, download, is_downloaded, nothing_else
from sqlora.fetch.failure import SourceError, reason


@dataclass(frozen=True)
class Obtained:
    """path: where it is here; source: which of several it came from."""

    path: Path
    source: str


def obtain(
    section: str,
    sources: str | Sequence[str],
    *,
    checksum: str | None,
    demo: Callable[[], Path],
    room_for: RoomFor = nothing_else,
) -> Obtained:
    """Find a source, downloading it if need be.

    Args:
        section: of params.yaml that holds `source` and `checksum`; named in errors.
        sources: `demo`, a path to a tar or a folder, or an http(s) URL of a tar; or several of them, tried in order
            until one works, except that what was downloaded before comes first.
        checksum: `md5:…`, `sha1:…`, `sha256:…` or `gitblob:…` of the tar in hexadecimal, or None.
        demo: makes or names the demo's tar.
        room_for: see `download`.

    Raises:
        SqloraError: if no source is there or can be downloaded, or if none matches the checksum.
    """
    several = [sources] if isinstance(sources, str) else list(sources)
    return obtain_first(section, several, checksum=read_checksum(section, checksum), demo=demo, room_for=room_for)


def obtain_first(
    section: str,
    several: Sequence[str],
    *,
    checksum: Checksum | None,
    demo: Callable[[], Path],
    room_for: RoomFor,
    others: Mapping[str, Callable[[str], Path]] | None = None,
) -> Obtained:
    """The same; `others` fetch addresses of further schemes (`hf` -> what fetches hf://…)."""
    fetchers = others or {}
    failures: list[SourceError] = []
    for source in sorted(several, key=lambda source: not is_downloaded(source, checksum)):
        scheme, is_address, _ = source.partition("://")
        try:
            if not is_address:
                return Obtained(_local(section, source, checksum, demo), source)
            if fetch := fetchers.get(scheme.lower()):
                return Obtained(fetch(source), source)
            return Obtained(download(section, source, checksum=checksum, room_for=room_for), source)
        except SourceError as error:
            failures.append(error)
            if len(failures) < len(several):
                print(f"{error.where}: {error.found}; trying the next source", file=sys.stderr)
    if len(failures) == 1:
        raise failures[0]
    raise SqloraError(
        f"params.yaml, {section}.source",
        found="; ".join([f"{len(several)} sources, none of which works"] + [f"{e.where}: {e.found}" for e in failures]),
        expected=f"one that gives {checksum}" if checksum else "one that gives a tar",
        next_step=f"Check the addresses and the connection and run again, or download it yourself and set "
        f"{section}.source to the path.",
    )


def _local(section: str, source: str, checksum: Checksum | None, demo: Callable[[], Path]) -> Path:
    path = demo() if source == "demo" else Path(source)
    try:
        path = path.expanduser()
        path.stat()
    except (OSError, RuntimeError) as error:
        raise SourceError(
            path.absolute(),
            found="no such file or folder" if isinstance(error, FileNotFoundError) else reason(error),
            expected=f"what {section}.source in params.yaml names: `demo`, a tar, a folder, an http(s) URL or (a model) hf://owner/name",
            next_step=f"Correct {section}.source; a relative path starts at the top of the repository.",
        ) from None
    if checksum and path.is_dir():
        raise SqloraError(
            path.absolute(),
            found=f"a folder, together with a {section}.checksum",
            expected="a checksum for a tar only",
            next_step=f"Set {section}.checksum to null, or {section}.source to the tar.",
        )
    if checksum and (found := hash_file(path, checksum.kind)) != checksum.digits:
        raise SourceError(
            path,
            found=f"{checksum.kind}:{found}",
            expected=f"{checksum}, the checksum in params.yaml",
            next_step=f"Correct {section}.checksum, or get the file again.",
        )
    return path
