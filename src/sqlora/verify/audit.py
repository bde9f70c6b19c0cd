"""Compares workspace, cache and remote with dvc.lock, byte by byte."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sqlora.progress import progress
from sqlora.verify.expected import Output, Store, listing_oid, open_stores, read_listing
from sqlora.verify.hashing import Hasher, content_of, files_below

MISSING = "no such file"


@dataclass(frozen=True)
class Damage:
    """where: workspace, cache or remote; path: of the file; found: its md5, or what is there instead.

    expected: md5 (of a folder's listing, ending in .dir), or None for a file that should not be there.
    """

    where: str
    path: str
    expected: str | None
    found: str
    output: Output


@dataclass
class Audit:
    """absent: what was never fetched or sent (where, path); healthy: (where, oid) -> path of a good copy.

    unread: folders whose listing is nowhere to be found, so that their files are unknown.
    """

    cache: Store
    remote: Store | None
    has_remote: bool
    files: int = 0
    damages: list[Damage] = field(default_factory=list)
    absent: list[tuple[str, str]] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    healthy: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def reached_remote(self) -> bool:
        """Whether anything was found there; an address that leads nowhere looks like an empty remote."""
        return any(where == "remote" for where, _ in self.healthy) or any(d.where == "remote" for d in self.damages)


def audit(root: Path, *, remote: bool) -> Audit:
    """Hash everything that dvc.lock names, under a progress bar."""
    outputs, cache, store, has_remote = open_stores(root, remote=remote)
    result = Audit(cache, store, has_remote)
    with progress("verify", total=None, unit="B", bytes_=True) as bar:
        hasher = Hasher(bar.update)
        for output in outputs:
            stores = [place for place in (cache, store) if place is not None and output.cached]
            listing = _workspace(root, output, hasher, stores, result)
            for place in stores:
                _store(place, output, listing, hasher, result)
    return result


def _workspace(root: Path, output: Output, hasher: Hasher, stores: list[Store], result: Audit) -> dict[str, str] | None:
    """Check an output in the workspace; returns what a folder should hold, or None if nothing tells."""
    path = root / output.path
    if not output.is_folder:
        found = hasher.file(path) if not path.is_dir() else "a folder"
        if found is None:
            result.absent.append(("workspace", output.path))
        else:
            _judge("workspace", output.path, output.oid, found, output, result)
        return {}
    here = {name: str(hasher.file(file)) for name, file in files_below(path).items()}
    wanted = next((listing for store in stores if (listing := _listing(store, output.oid)) is not None), None)
    if wanted is None and here and listing_oid(here) == output.oid:
        wanted = here
    if not path.exists():
        result.absent.append(("workspace", output.path))
    elif wanted is None:
        result.damages.append(Damage("workspace", output.path, output.oid, listing_oid(here), output))
    else:
        for name in sorted(wanted.keys() | here.keys()):
            _judge("workspace", f"{output.path}/{name}", wanted.get(name), here.get(name, MISSING), output, result)
    if wanted is None:
        result.unread.append(output.path)
    return wanted


def _store(store: Store, output: Output, listing: dict[str, str] | None, hasher: Hasher, result: Audit) -> None:
    oids = [output.oid, *sorted(set((listing or {}).values()))]
    has_listing = False
    for oid in oids:
        if (store.name, oid) in result.healthy:
            continue  # another output has the same
        found = hasher.object(store, oid)
        has_listing |= oid == output.oid and output.is_folder and found is not None
        # DVC takes it for granted that a remote that has a listing has the files as well, and never sends them again.
        if found is None and not (has_listing and store.name == "remote"):
            if (store.name, store.shown(oid)) not in result.absent:  # outputs may share files
                result.absent.append((store.name, store.shown(oid)))
        else:
            _judge(store.name, store.shown(oid), oid, found or MISSING, output, result)


def _judge(where: str, path: str, expected: str | None, found: str, output: Output, result: Audit) -> None:
    result.files += 1
    if expected is not None and found == expected.removesuffix(".dir"):
        result.healthy[where, expected] = path
    else:
        result.damages.append(Damage(where, path, expected, found, output))


def _listing(store: Store, oid: str) -> dict[str, str] | None:
    content = content_of(store, oid)
    return None if content is None else read_listing(content, oid)
