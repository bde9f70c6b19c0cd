"""What dvc.lock says should be in the workspace, in DVC's cache and in the remote."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlora.errors import SqloraError


@dataclass(frozen=True)
class Output:
    """One output of a stage.

    path: relative to the repository; stage: as `dvc repro` takes it; oid: md5 of the file, or of a folder's listing and
    then ending in `.dir`; cached: whether DVC keeps a copy.
    """

    path: str
    stage: str
    oid: str
    cached: bool

    @property
    def is_folder(self) -> bool:
        return self.oid.endswith(".dir")


@dataclass(frozen=True)
class Store:
    """A place that holds objects by their md5: DVC's cache, or a remote. local: whether its paths are of this disk."""

    name: str
    odb: Any

    @property
    def local(self) -> bool:
        return bool(self.odb.fs.protocol == "local")

    def path(self, oid: str) -> str:
        """The path of an object; that of a remote that is no folder with its scheme, for messages as well."""
        return str(self.odb.oid_to_path(oid))

    def shown(self, oid: str) -> str:
        return self.path(oid) if self.local else str(self.odb.fs.unstrip_protocol(self.path(oid)))


def open_stores(root: Path, *, remote: bool) -> tuple[list[Output], Store, Store | None, bool]:
    """The outputs that dvc.lock (or a .dvc file) records, the cache, the default remote if it is wanted, and whether
    there is a default remote at all.

    Raises:
        SqloraError: outside of a DVC repository, if its files cannot be read, or if no default remote can be opened.
    """
    from dvc.config import NoRemoteError
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        repo = Repo(str(root))
        outputs = [
            Output(str(out), out.stage.addressing, out.hash_info.value, bool(out.use_cache))
            for out in repo.index.outs
            if out.hash_info and out.hash_info.name == "md5" and out.protocol == "local"
        ]
        has_remote = bool(repo.config["core"].get("remote"))
        store = Store("remote", repo.cloud.get_remote_odb()) if remote else None
        return outputs, Store("cache", repo.cache.local), store, has_remote
    except NoRemoteError:
        raise SqloraError(
            root.absolute() / ".dvc/config",
            found="no default remote",
            expected="one, for --remote",
            next_step="Run `dvc remote add -d NAME PATH_OR_URL`, or leave --remote out.",
        ) from None
    except ImportError as error:  # of the package that a kind of remote needs
        raise SqloraError(
            root.absolute() / ".dvc/config",
            found=" ".join(str(error).split()),
            expected="what the default remote needs",
            next_step="Install that package, or leave --remote out.",
        ) from None
    except (DvcException, OSError) as error:
        raise SqloraError(
            root.absolute(),
            found=" ".join(str(error).split()) or type(error).__name__,
            expected="a DVC repository whose files can be read",
            next_step="Run it from the top of the repository, and mend what `dvc status` complains about.",
        ) from None


def read_listing(content: bytes, oid: str) -> dict[str, str] | None:
    """Path in the folder -> md5, from a `.dir` object; None unless it is undamaged."""
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != oid.removesuffix(".dir"):
        return None
    return {entry["relpath"]: entry["md5"] for entry in json.loads(content)}


def listing_oid(files: dict[str, str]) -> str:
    """The md5 of a folder's listing, as dvc_data.hashfile.tree writes it."""
    entries = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"
