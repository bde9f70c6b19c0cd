"""Where DVC keeps its copies in this repository, so that what was fetched once lies there from the start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlora.fetch.archive import linked
from sqlora.fetch.checksum import hash_file

_READ_ONLY = 0o444  # how DVC keeps its objects


@dataclass(frozen=True)
class DvcCache:
    """folder: of the objects, each under its md5; copies: whether DVC copies between it and the workspace."""

    folder: Path
    copies: bool

    def path(self, md5: str) -> Path:
        """Where an object is or would be."""
        return self.folder / md5[:2] / md5[2:]

    def put(self, path: Path, md5: str) -> bool:
        """Make the file an object as well, without a second copy; returns whether that can be done here.

        The file becomes read-only, as it is the same one.
        """
        try:
            return self._put(path, self.path(md5), md5)
        except PermissionError:  # a cache that others share
            return False

    def _put(self, path: Path, target: Path, md5: str) -> bool:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.samefile(path):
            if hash_file(target, "md5") == md5:
                return True
            target.unlink()  # DVC never looks into a read-only object and would hand out the damaged one
        if not target.exists() and not linked(path, target):
            return False
        target.chmod(_READ_ONLY)
        return True


def dvc_cache() -> DvcCache | None:
    """The cache of the DVC repository in this folder, or None without one that lies on a disk here."""
    # Imported here: it takes a second, and only downloads need it.
    try:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo
        from dvc_objects.fs.generic import test_links
        from dvc_objects.fs.local import LocalFileSystem
    except ImportError:
        return None
    try:
        with Repo(".", uninitialized=False) as repo:
            cache = repo.cache.local
            folder = Path(cache.path)
            folder.mkdir(parents=True, exist_ok=True)
            disk = LocalFileSystem()  # type: ignore[no-untyped-call]
            place = str(Path.cwd() / "x")
            works = test_links(list(cache.cache_types), disk, str(folder), disk, place)
    except (DvcException, OSError):
        return None
    return DvcCache(folder, copies=works[:1] in ([], ["copy"]))
