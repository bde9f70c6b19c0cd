"""Takes wanted files out of a tar or a folder that nobody vouches for."""

from __future__ import annotations

import lzma
import shutil
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import count
from pathlib import Path, PurePosixPath

from sqlora.errors import SqloraError
from sqlora.fetch.failure import printable
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


def extract(source: Path, names: Collection[str], folder: Path, *, max_bytes: int = MAX_BYTES) -> None:
    """Copy the files of these base names out of a tar (of any compression) or a folder into `folder`.

    Only regular files are taken, each under its own bare name, wherever in the tar it lies; links, devices, sparse
    files and paths that are absolute or climb with `..` never are. A folder is searched itself and one level below; its
    files are copied in full, because a link would let DVC write-protect the user's own files.

    Args:
        max_bytes: the most that the tar may hold when it is decompressed, all its members together.

    Raises:
        SqloraError: naming every missing file together, a name that occurs twice, a tar that is damaged, that was cut
            or that holds more than `max_bytes` or MAX_MEMBERS, or a disk that is too small.
    """
    if source.is_dir():
        _extract_folder(source, names, folder)
    else:
        _extract_tar(source, names, folder, max_bytes)


def is_tar(path: Path) -> bool:
    """Whether a file begins like a tar of any compression."""
    try:
        with open(path, "rb") as raw, tarfile.TarFile(fileobj=Content(raw, MAX_BYTES)):
            return True
    except _DAMAGE as error:
        _raise_if_the_disks(error)
        return False


def _extract_folder(source: Path, names: Collection[str], folder: Path) -> None:
    places = {name: [p for p in (source / name, *sorted(source.glob(f"*/{name}"))) if p.is_file()] for name in names}
    others = [path.name for path in sorted(source.iterdir())[: _SHOWN + 1]]
    _require_once(source, {name: len(found) for name, found in places.items()}, others, [])
    with _bar(f"copy {source.name}", total=sum(found[0].stat().st_size for found in places.values())) as bar:
        for name, (path,) in places.items():
            size = path.stat().st_size
            with open(path, "rb") as content:
                _copy(content.read, folder / name, size, bar.update)


def _extract_tar(archive: Path, names: Collection[str], folder: Path, max_bytes: int) -> None:
    number = dict.fromkeys(names, 0)
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
                if path.name not in number:
                    continue
                if not member.isreg() or member.issparse() or path.is_absolute() or ".." in path.parts:
                    refused.append(member.name)
                    continue
                number[path.name] += 1
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
            next_step="Delete it if it lies in .sqlora/downloads and get it again; a checksum would have told earlier.",
        ) from None
    _require_once(archive, number, seen, refused)


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


def _require_once(source: Path, number: dict[str, int], seen: list[str], refused: list[str]) -> None:
    problems = [f"{times or 'no'} {name}" for name, times in number.items() if times != 1]
    if problems:
        among = _listed(seen) or "no file at all"
        unsafe = f"; refused as a link, a sparse file or a path out of the archive: {_listed(refused)}" * bool(refused)
        raise SqloraError(
            source.absolute(),
            found=f"{', '.join(problems)} among {among}{unsafe}",
            expected=f"exactly one each of {', '.join(number)}",
            next_step="Check that the source has the right format, is complete and holds nothing else of that kind.",
        )


def _listed(names: list[str]) -> str:
    return ", ".join([printable(name) for name in names[:_SHOWN]] + ["…"] * (len(names) > _SHOWN))
