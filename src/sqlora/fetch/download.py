"""Downloads over HTTP that are resumed, retried, verified, and never done twice."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import requests
import urllib3
from filelock import FileLock, Timeout

from sqlora.errors import SqloraError
from sqlora.fetch.archive import is_tar
from sqlora.fetch.checksum import Checksum
from sqlora.fetch.failure import SourceError, download_failed, reason, shown
from sqlora.fetch.part import Part
from sqlora.fetch.places import DOWNLOADS, QUARANTINE
from sqlora.fetch.request import MisfitError, TryAgainError, ask, length_of, total_of_range, validator_of
from sqlora.progress import progress

ATTEMPTS = 5  # in a row that bring nothing new
BACKOFF_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
_CHUNK = 1 << 20
_PART_ENDING = re.compile(r"(\.part(\.json)?)+$")


RoomFor = Callable[[int], tuple[int, str]]


def nothing_else(_: int) -> tuple[int, str]:
    """The room for what is made of a download, where nothing is."""
    return 0, ""


def download(section: str, url: str, *, checksum: Checksum | None, room_for: RoomFor = nothing_else) -> Path:
    """Return the tar at this http(s) URL, kept under DOWNLOADS by its checksum or, without one, by its URL.

    A part of it that an earlier run left is continued (RFC 9110, sections 13.1.5 and 14). Of several processes that
    want the same, one downloads and the others wait.

    Args:
        section: of params.yaml, named in errors.
        room_for: from the size of the tar to the bytes of disk space that must be left when the download is complete,
            and what for, in words.

    Raises:
        SourceError: if the server does not give the tar or gives other bytes than the checksum says.
        SqloraError: if the disk is too small, or the URL is of another kind.
    """
    if not _is_http(url):
        raise SqloraError(
            shown(url),
            found=f"the scheme {url.partition('://')[0]}://",
            expected="http:// or https://",
            next_step=f"Download it yourself and set {section}.source to the path.",
        )
    folder = _folder(url, checksum)
    with locked(folder, f"{shown(url)}: another process downloads it; waiting for that"):
        target = folder / next((_PART_ENDING.sub("", path.name) for path in _files(folder)), _name(section, url))
        if target.exists():  # complete and verified: it got this name only then
            return target
        part = Part(target, checksum)
        try:
            _fill(section, url, part, room_for)
            _verify(section, url, part, checksum)
            return part.publish()
        except SqloraError:
            if not part.resumable or not part.size:
                part.discard()
            raise


def require_space(folder: Path, name: str, missing: int, room: int, purpose: str) -> None:
    """Refuse a download of `missing` bytes that would leave less than `room` bytes for its purpose."""
    free = shutil.disk_usage(folder).free
    if missing + room > free:
        raise SqloraError(
            folder.absolute(),
            found=f"{free / 1e9:.3g} GB of free disk space",
            expected=f"{(missing + room) / 1e9:.3g} GB: {missing / 1e9:.3g} to download {name}"
            + f" and {room / 1e9:.3g} for {purpose}" * bool(room),
            next_step="Free some space and run again.",
        )


def discard_download(source: str, checksum: Checksum | None) -> None:
    """Delete what `download` keeps of a source."""
    if _is_http(source):
        for path in _files(_folder(source, checksum)):
            path.unlink()


def is_downloaded(source: str, checksum: Checksum | None) -> bool:
    """Whether `download` would return at once."""
    if not _is_http(source):
        return False
    return any(not _PART_ENDING.search(path.name) for path in _files(_folder(source, checksum)))


@contextmanager
def locked(folder: Path, message: str) -> Iterator[None]:
    """Hold a folder for this process; prints `message` if another one holds it, and waits."""
    folder.mkdir(parents=True, exist_ok=True)
    # The operating system lets go of it when the process ends, however it ends.
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(message, file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _is_http(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def key_of(url: str, checksum: Checksum | None) -> str:
    """What a download is kept under; mirrors share what has the same checksum."""
    key = str(checksum) if checksum else repr((url, None))
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _folder(url: str, checksum: Checksum | None) -> Path:
    return DOWNLOADS / key_of(url, checksum)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if not path.name.startswith("."))


def _name(section: str, url: str) -> str:
    try:
        name = PurePosixPath(urllib.parse.urlsplit(url).path).name
    except ValueError as error:
        raise download_failed(section, url, reason(error)) from None
    return _PART_ENDING.sub("", re.sub(r"[^\w.-]", "_", name)[-100:].lstrip(".")) or "download"


def _fill(section: str, url: str, part: Part, room_for: RoomFor) -> None:
    """Make the part complete, over as many connections as it takes."""
    # What counts is bytes never reached before: a server that drops each connection and cannot resume must not keep
    # us for ever.
    furthest = part.size
    vain = misfits = 0
    while not part.complete:
        try:
            _transfer(section, url, part, room_for)
            return
        except MisfitError as misfit:
            part.discard()
            furthest = 0
            misfits += 1
            if misfits > 1:
                raise download_failed(section, url, str(misfit)) from None
        except TryAgainError as interruption:
            vain = 0 if part.size > furthest else vain + 1
            furthest = max(furthest, part.size)
            if vain >= ATTEMPTS:
                kept = part.size if part.resumable else 0
                raise download_failed(section, url, str(interruption), kept=kept) from None
            _pause(url, interruption, vain)


def _pause(url: str, interruption: TryAgainError, vain: int) -> None:
    seconds = interruption.pause
    if seconds is None:
        seconds = BACKOFF_SECONDS * 2 ** max(vain - 1, 0) * random.uniform(0.75, 1.25)
    seconds = min(seconds, LONGEST_PAUSE_SECONDS)
    print(f"{shown(url)}: {interruption}; trying again in {seconds:.1f} s", file=sys.stderr, flush=True)
    time.sleep(seconds)


def _transfer(section: str, url: str, part: Part, room_for: RoomFor) -> None:
    """Ask once for what is missing and append what comes."""
    if not part.resumable:
        part.discard()
    asked = part.range_headers(url)
    with ask(section, url, asked) as response:
        if response.status_code == 206:
            part.total = total_of_range(response, asked, part.size, part.total)
        else:
            part.start(url, validator_of(response), length_of(response))
        missing = part.total - part.size if part.total is not None else 0
        require_space(part.path.parent, part.target.name, missing, *room_for(part.total or 0))
        with progress(f"download {part.target.name}", total=part.total, unit="B", bytes_=True) as bar:
            bar.initial = bar.n = part.size  # the rate counts new bytes only
            try:
                part.append(_chunks(response, bar))
            except urllib3.exceptions.ReadTimeoutError:
                raise TryAgainError(f"{_broken_off(part)} (timed out)") from None
            except urllib3.exceptions.HTTPError:
                raise TryAgainError(_broken_off(part)) from None
    if part.total is not None and part.size > part.total:
        raise MisfitError(f"{part.size} bytes where {part.total} were announced")
    if part.total is not None and part.size < part.total:
        raise TryAgainError(_broken_off(part))


def _chunks(response: requests.Response, bar: Any) -> Iterator[bytes]:
    # Undecoded: a server may call a .tar.gz an encoding. read1 hands out what is there, so that little is lost when the
    # connection stalls.
    while chunk := response.raw.read1(_CHUNK, decode_content=False):
        yield chunk
        bar.update(len(chunk))


def _broken_off(part: Part) -> str:
    return f"{part.size}{f' of {part.total}' if part.total is not None else ''} bytes before the connection ended"


def _verify(section: str, url: str, part: Part, checksum: Checksum | None) -> None:
    if checksum and (found := part.digest()) != checksum.digits:
        place = QUARANTINE / f"{part.target.name}-{found[:8]}"
        part.move_to(place)
        raise SourceError(
            shown(url),
            found=f"{checksum.kind}:{found}",
            expected=f"{checksum}, the checksum in params.yaml",
            next_step=f"The download was moved to {place}. Correct {section}.checksum, or run again to start over.",
        )
    if not is_tar(part.path):
        part.discard()
        raise download_failed(section, url, "something else than a tar")
