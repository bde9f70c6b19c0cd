"""Takes wanted files out of a tar or a folder that nobody vouches for."""

from __future__ import annotations

import errno
import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import count
from pathlib import Path, PurePosixPath

from sqlora.errors import SqloraError
from sqlora.fetch.failure import printable
from sqlora.fetch.places import DOWNLOADS, QUARANTINE
from sqlora.fetch.selection import AllOf, Chosen, Selection
from sqlora.fetch.stream import BLOCK, Content, TooLargeError
from sqlora.progress import progress

MAX_BYTES = 64 * 10**9
MAX_MEMBERS = 1_000_000
_CHUNK = 1 << 20
_SHOWN = 20
_bar = partial(progress, unit="B", bytes_=True)
# tarfile lets most of these through when a header is hostile. OSError without a number is a decompressor's.
_DAMAGE = (
    *(tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError),
    *(ValueError, LookupError, ArithmeticError, TypeError, RecursionError, MemoryError),
)


def extract(
    source: Path, wanted: Collection[str] | Selection, folder: Path, *, max_bytes: int = MAX_BYTES, link: bool = False
) -> None:
    """Copy the wanted files out of a tar (of any compression) or a folder into `folder`.

    Only regular files are taken, each under its own bare name, wherever in the tar it lies; links, devices, sparse
    files and paths that are absolute or climb with `..` never are. A tar is read once. A folder is searched itself and,
    for what is not there, one level below.

    Args:
        wanted: bare names, or a rule that chooses among what is there.
        max_bytes: the most that the tar may hold when it is decompressed, all its members together.
        link: whether files of a folder may become hard links. Never for a user's own: DVC would write-protect them.

    Raises:
        SqloraError: naming every missing file together, a name that occurs twice, a tar that is damaged, that was cut
            or that holds more than `max_bytes` or MAX_MEMBERS, or a disk that is too small.
    """
    selection = AllOf(wanted) if isinstance(wanted, Collection) else wanted
    if source.is_dir():
        _extract_folder(source, selection, folder, link)
    else:
        _extract_tar(source, selection, folder, max_bytes)


def is_tar(path: Path) -> bool:
    """Whether a file begins like a tar of any compression."""
    try:
        with open(path, "rb") as raw, tarfile.TarFile(fileobj=Content(raw, MAX_BYTES)):
            return True
    except _DAMAGE as error:
        _raise_if_the_disks(error)
        return False


def linked(source: Path, target: Path) -> bool:
    """Give a file a second name, if the file system can; returns whether it could."""
    try:
        os.link(source, target)
    except OSError as error:
        # What a full or read-only disk says is no property of the file system.
        if error.errno in (errno.ENOSPC, errno.EROFS, errno.EIO, errno.ENOENT):
            raise
        return False
    return True


def _extract_folder(source: Path, selection: Selection, folder: Path, link: bool) -> None:
    places: dict[str, list[Path]] = {}
    # The folder itself if it has all that is wanted; files of a folder below are not mixed into it.
    for pattern in ("*", "*/*"):
        found = [path for path in sorted(source.glob(pattern)) if selection.matches(path.name) and path.is_file()]
        for path in found:
            if path.name not in places or places[path.name][0].parent != source:
                places.setdefault(path.name, []).append(path)
        if places and not selection.choose({name: paths[0] for name, paths in places.items()}).missing:
            break
    chosen = selection.choose({name: paths[0] for name, paths in places.items()})
    others = [path.name for path in sorted(source.iterdir())[: _SHOWN + 1]]
    _require_once(source, chosen, {name: len(paths) for name, paths in places.items()}, others, [])
    _require_one_folder(source, {name: str(places[name][0].parent) for name in chosen.names})
    sizes = {name: places[name][0].stat().st_size for name in chosen.names}
    with _bar(f"copy {source.name}", total=sum(sizes.values())) as bar:
        for name, size in sizes.items():
            if link and linked(places[name][0], folder / name):
                bar.update(size)
                continue
            with open(places[name][0], "rb") as content:
                _copy(content.read, folder / name, size, bar.update)


def _extract_tar(archive: Path, selection: Selection, folder: Path, max_bytes: int) -> None:
    number: dict[str, int] = {}
    parents: dict[str, str] = {}
    seen: list[str] = []
    refused: list[str] = []
    total = archive.stat().st_size
    try:
        with open(archive, "rb") as raw, _bar(f"extract {archive.name}", total=total) as bar:
            # The raw file's position measures progress under any compression.
            content = Content(raw, max_bytes, lambda: bar.update(raw.tell() - bar.n))
            for member in _members(archive, content):
                path = PurePosixPath(member.name)
                if len(seen) <= _SHOWN:
                    seen.append(member.name)
                if not selection.matches(path.name):
                    continue
                if not member.isreg() or member.issparse() or path.is_absolute() or ".." in path.parts:
                    refused.append(member.name)
                    continue
                number[path.name] = number.get(path.name, 0) + 1
                parents[path.name] = str(path.parent)
                content.seek(member.offset_data)
                _copy(content.take, folder / path.name, member.size)
    except TooLargeError:
        raise _bomb(archive, f"more than {max_bytes / 1e9:g} GB when it is decompressed") from None
    except _DAMAGE as error:
        _raise_if_the_disks(error)
        raise SqloraError(
            archive.absolute(),
            found=f"no tar, or a truncated or damaged one ({_first_words(error)})",
            expected="a whole tar, plain or compressed with gzip, bzip2 or xz",
            next_step=_set_aside(archive),
        ) from None
    chosen = selection.choose({name: folder / name for name in number})
    _require_once(archive, chosen, number, seen, refused)
    _require_one_folder(archive, {name: parents[name] for name in chosen.names})
    for name in number.keys() - set(chosen.names):  # which are wanted is known only now that all were seen
        (folder / name).unlink()


def _members(archive: Path, content: Content) -> Iterator[tarfile.TarInfo]:
    """Every member in order, and then a look at whether the tar ends as it should."""
    with tarfile.TarFile(fileobj=content) as tar:
        for index in count(1):
            content.next_member()
            member = tar.next()
            if member is None:
                break
            if index > MAX_MEMBERS:
                raise _bomb(archive, f"more than {MAX_MEMBERS} members")
            if member.size < 0:
                raise tarfile.ReadError("a negative size")
            yield member
            tar.members.clear()  # type: ignore[attr-defined]  # a gigabyte for a million of them
    # tarfile takes the end of the file, and any block that is no header, for the end of the tar.
    end = content.last_read
    if len(end) == BLOCK and any(end):
        raise tarfile.ReadError("a damaged header")
    if content.take(BLOCK) != bytes(BLOCK):
        raise tarfile.ReadError("truncated, as the two zero blocks at its end are missing")
    while content.take(_CHUNK):  # compressed formats check themselves at their very end, which lies behind the tar's
        pass


def _copy(
    read: Callable[[int], bytes], target: Path, size: int, report: Callable[[int], object] = lambda _: None
) -> None:
    free = shutil.disk_usage(target.parent).free
    if size > free:
        raise SqloraError(
            target.absolute(),
            found=f"{free / 1e9:.1f} GB of free disk space",
            expected=f"{size / 1e9:.1f} GB for this file",
            next_step="Free some space and run again.",
        )
    left = size
    with open(target, "wb") as file:
        while left:
            chunk = read(min(left, _CHUNK))
            if not chunk:
                raise tarfile.ReadError(f"unexpected end inside {target.name}")
            file.write(chunk)
            left -= len(chunk)
            report(len(chunk))


def _set_aside(archive: Path) -> str:
    """Move a damaged download away, so that it is not taken for a good one again; what to do next."""
    if not archive.resolve().is_relative_to(DOWNLOADS.resolve()):
        return "Get it again; a checksum would have told earlier."
    QUARANTINE.mkdir(parents=True, exist_ok=True)
    place = QUARANTINE / archive.name
    archive.replace(place)
    return f"It was moved to {place}. Run again: it is downloaded anew; a checksum would have told at once."


def _raise_if_the_disks(error: BaseException) -> None:
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def _first_words(error: BaseException) -> str:
    return printable(str(error).partition(":")[0]) or type(error).__name__


def _bomb(archive: Path, found: str) -> SqloraError:
    return SqloraError(
        archive.absolute(),
        found=found,
        expected="no more than such an archive holds",
        next_step="Check that it is the right archive; if so, unpack it yourself and name the folder as the source.",
    )


def _require_once(source: Path, chosen: Chosen, number: dict[str, int], seen: list[str], refused: list[str]) -> None:
    problems = [chosen.missing] * bool(chosen.missing)
    problems += [f"{number[name]} {name}" for name in chosen.names if number.get(name, 0) > 1]
    if problems:
        among = _listed(seen) or "no file at all"
        unsafe = f"; refused as a link, a sparse file or a path out of the archive: {_listed(refused)}" * bool(refused)
        raise SqloraError(
            source.absolute(),
            found=f"{', '.join(problems)} among {among}{unsafe}",
            expected=chosen.expected,
            next_step="Check that the source has the right format, is complete and holds nothing else of that kind.",
        )


def _require_one_folder(source: Path, parents: dict[str, str]) -> None:
    """Files of two folders may belong to two models."""
    if len(set(parents.values())) > 1:
        shown = [f"{name} in {parent}" for name, parent in parents.items()]
        raise SqloraError(
            source.absolute(),
            found=f"files that lie in different folders: {_listed(shown)}",
            expected="all of them in one folder",
            next_step="Put what belongs together into a folder of its own and name that as the source.",
        )


def _listed(names: list[str]) -> str:
    return ", ".join([printable(name) for name in names[:_SHOWN]] + ["…"] * (len(names) > _SHOWN))
