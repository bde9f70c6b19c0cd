"""Brings a model or a data set here from a path or a URL, and takes the wanted files out of it.

Both fetch stages depend on this module and on little else, because whatever changes here makes them run again.
"""

from __future__ import annotations

import hashlib
import http.client
import lzma
import re
import shutil
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path, PurePosixPath
from ssl import SSLError
from typing import IO

from sqlora.errors import SqloraError
from sqlora.progress import progress
from sqlora.publish import publish_file

DOWNLOADS = Path(".sqlora/downloads")
TIMEOUT_SECONDS = 60
_CHUNK = 1 << 20
_bar = partial(progress, unit="B", bytes_=True)
# ValueError is a malformed URL's. Other kinds of OSError are the disk's.
_NETWORK = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, SSLError, ValueError)
_DIGITS = {"md5": 32, "sha1": 40, "sha256": 64}


def obtain(section: str, source: str, *, checksum: str | None, demo: Callable[[], Path]) -> Path:
    """Return the path of a source, downloading it if need be.

    Args:
        section: of params.yaml that holds `source` and `checksum`; named in errors.
        source: `demo`, a path to a tar or a folder, or an http(s) URL of a tar. A download is kept under DOWNLOADS by
            its URL and checksum and is used again.
        checksum: `md5:…`, `sha1:…` or `sha256:…` of the tar in hexadecimal, or None.
        demo: makes or names the demo's tar.

    Raises:
        SqloraError: if the source is not there or cannot be downloaded, or if it does not match the checksum.
    """
    digest = _read_checksum(section, checksum)
    if "://" in source:
        return _downloaded(section, source, digest)
    path = demo() if source == "demo" else Path(source).expanduser()
    if not path.exists():
        raise SqloraError(
            path.absolute(),
            found="no such file or folder",
            expected=f"what {section}.source in params.yaml names: `demo`, a tar, a folder or an http(s) URL",
            next_step=f"Correct {section}.source; a relative path starts at the top of the repository.",
        )
    if digest and path.is_dir():
        raise SqloraError(
            path.absolute(),
            found=f"a folder, together with a {section}.checksum",
            expected="a checksum for a tar only",
            next_step=f"Set {section}.checksum to null, or {section}.source to the tar.",
        )
    if digest:
        _verify(path, _hash_file(path, digest[0]), digest, f"Correct {section}.checksum, or get the file again.")
    return path


def extract(source: Path, names: Collection[str], folder: Path) -> None:
    """Copy the files of these base names out of a tar (of any compression) or a folder into `folder`.

    Only regular files are taken, each under its own bare name, wherever in the tar it lies; links, devices and paths
    that are absolute or climb with `..` never are. A folder is searched itself and one level below; its files are
    copied in full, because a link would let DVC write-protect the user's own files.

    Raises:
        SqloraError: naming every missing file together, a name that occurs twice, or a tar that is damaged.
    """
    if source.is_dir():
        _extract_folder(source, names, folder)
    else:
        _extract_tar(source, names, folder)


def _read_checksum(section: str, checksum: str | None) -> tuple[str, str] | None:
    if checksum is None:
        return None
    kind, _, digits = checksum.lower().partition(":")
    if not re.fullmatch(rf"[0-9a-f]{{{_DIGITS.get(kind, 0)}}}", digits) or not digits:
        raise SqloraError(
            f"params.yaml, {section}.checksum",
            found=repr(checksum),
            expected=" or ".join(f"{name}:<{length} hexadecimal digits>" for name, length in _DIGITS.items()),
            next_step="Correct the checksum, or set it to null for no check.",
        )
    return kind, digits


def _hash_file(path: Path, kind: str) -> str:
    digest = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as file, _bar(f"check {path.name}", total=path.stat().st_size) as bar:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _verify(where: object, found: str, digest: tuple[str, str], next_step: str) -> None:
    if found != digest[1]:
        raise SqloraError(
            where,
            found=f"{digest[0]}:{found}",
            expected=f"{digest[0]}:{digest[1]}, the checksum in params.yaml",
            next_step=next_step,
        )


def _downloaded(section: str, url: str, digest: tuple[str, str] | None) -> Path:
    if not url.lower().startswith(("http://", "https://")):
        raise SqloraError(
            url,
            found=f"the scheme {url.partition('://')[0]}://",
            expected="http:// or https://",
            next_step=f"Download it yourself and set {section}.source to the path.",
        )
    key = hashlib.sha256(repr((url, digest)).encode()).hexdigest()[:16]
    try:
        name = re.sub(r"[^\w.-]", "_", PurePosixPath(urllib.parse.urlsplit(url).path).name)[-100:].lstrip(".")
        target = DOWNLOADS / key / (name or "download")
        if not target.exists():  # complete and verified, if it exists: it was renamed only then
            with publish_file(target) as path:
                _download(section, url, path, digest)
    except _NETWORK as error:
        status = f"HTTP status {error.code}: " if isinstance(error, urllib.error.HTTPError) else ""
        raise _failed(section, url, f"{status}{getattr(error, 'reason', None) or error}") from None
    return target


def _download(section: str, url: str, path: Path, digest: tuple[str, str] | None) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "sqlora"})
    hashed = hashlib.new(digest[0] if digest else "md5", usedforsecurity=False)
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response, open(path, "wb") as file:
        if response.headers.get_content_type() == "text/html":
            raise _failed(section, url, "a web page (text/html)")
        length = int(response.headers["Content-Length"]) if response.headers["Content-Length"] else None
        with _bar(f"download {path.name.removeprefix('.partial-')}", total=length) as bar:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                hashed.update(chunk)
                bar.update(len(chunk))
    # A connection that breaks off looks like the end of the file.
    if length is not None and path.stat().st_size != length:
        raise _failed(section, url, f"{path.stat().st_size} of {length} bytes before the connection ended")
    if digest:
        _verify(url, hashed.hexdigest(), digest, "The download was deleted. Correct the checksum, or run again.")
    if not tarfile.is_tarfile(path):
        raise _failed(section, url, "something else than a tar")


def _failed(section: str, url: str, found: str) -> SqloraError:
    return SqloraError(
        url,
        found=found,
        expected="a tar to download",
        next_step=f"Check the address and the connection and run again, or download it yourself and set "
        f"{section}.source to the path.",
    )


def _extract_folder(source: Path, names: Collection[str], folder: Path) -> None:
    places = {name: [p for p in (source / name, *sorted(source.glob(f"*/{name}"))) if p.is_file()] for name in names}
    others = [path.name for path in sorted(source.iterdir())[:20]]
    _require_once(source, {name: len(found) for name, found in places.items()}, others, [])
    with _bar(f"copy {source.name}", total=sum(found[0].stat().st_size for found in places.values())) as bar:
        for name, (path,) in places.items():
            with open(path, "rb") as content:
                _copy(content, folder / name, path.stat().st_size, bar.update)


def _extract_tar(archive: Path, names: Collection[str], folder: Path) -> None:
    count = dict.fromkeys(names, 0)
    seen: list[str] = []
    refused: list[str] = []
    total = archive.stat().st_size
    try:
        # The raw file's position measures progress under any compression.
        with (
            open(archive, "rb") as raw,
            tarfile.open(fileobj=raw, mode="r:*") as tar,
            _bar(f"extract {archive.name}", total=total) as bar,
        ):
            for member in tar:
                path = PurePosixPath(member.name)
                seen.append(member.name)
                if path.name not in count:
                    continue
                if not member.isreg() or path.is_absolute() or ".." in path.parts:
                    refused.append(member.name)
                    continue
                count[path.name] += 1
                content = tar.extractfile(member)
                assert content is not None  # only for what is no regular file
                _copy(content, folder / path.name, member.size, lambda _: bar.update(raw.tell() - bar.n))
            # Compressed formats check themselves at their very end, which lies behind the tar's.
            while tar.fileobj is not None and tar.fileobj.read(_CHUNK):
                pass
            bar.update(total - bar.n)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's fault, not the archive's
        raise SqloraError(
            archive.absolute(),
            found=f"no tar, or a truncated or damaged one ({str(error).partition(':')[0]})",
            expected="a whole tar, plain or compressed with gzip, bzip2 or xz",
            next_step=f"Delete it if it lies in {DOWNLOADS}, and get it again; a checksum would have told earlier.",
        ) from None
    _require_once(archive, count, seen, refused)


def _copy(content: IO[bytes], target: Path, size: int, report: Callable[[int], object]) -> None:
    free = shutil.disk_usage(target.parent).free
    if size > free:
        raise SqloraError(
            target.absolute(),
            found=f"{free / 1e9:.1f} GB of free disk space",
            expected=f"{size / 1e9:.1f} GB for this file",
            next_step="Free some space and run again.",
        )
    with open(target, "wb") as file:
        while chunk := content.read(_CHUNK):
            file.write(chunk)
            report(len(chunk))


def _require_once(source: Path, count: dict[str, int], seen: list[str], refused: list[str]) -> None:
    problems = [f"{number or 'no'} {name}" for name, number in count.items() if number != 1]
    if problems:
        among = ", ".join(seen[:20]) + ", …" * (len(seen) > 20) or "no file at all"
        unsafe = f"; refused as a link or a path out of the archive: {', '.join(refused[:20])}" * bool(refused)
        raise SqloraError(
            source.absolute(),
            found=f"{', '.join(problems)} among {among}{unsafe}",
            expected=f"exactly one each of {', '.join(count)}",
            next_step="Check that the source has the right format, is complete and holds nothing else of that kind.",
        )
