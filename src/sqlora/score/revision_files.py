"""Files of a git revision, wherever git and DVC keep them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from sqlora.errors import SqloraError

WORKSPACE = "workspace"


@contextmanager
def revision_files(root: Path, revision: str, names: Sequence[str]) -> Iterator[Path]:
    """A folder that holds the named files of a revision in their places: the repository itself for the workspace.

    Args:
        root: top of the repository.
        revision: branch, tag, commit or experiment, or `workspace`.

    Raises:
        SqloraError: for a revision that is none, or a file that is neither in git nor in DVC's cache nor in its remote.
    """
    if revision == WORKSPACE:
        for name in names:
            if not (root / name).is_file():
                raise SqloraError(
                    root / name, found="no such file", expected="a finished run", next_step="Run dvc repro."
                )
        yield root
        return
    with tempfile.TemporaryDirectory() as scratch:
        _fetch(root, revision, names, Path(scratch))
        yield Path(scratch)


@contextmanager
def named_after(revision: str, folder: Path) -> Iterator[None]:
    """What fails while a revision's files are read names the revision, not the folder that they were put into."""
    try:
        yield
    except SqloraError as error:
        if revision == WORKSPACE:
            raise
        raise SqloraError(
            error.where.replace(str(folder), revision),
            found=error.found,
            expected=error.expected,
            next_step=f"Check {revision} out and run dvc repro there.",
        ) from None


def read_sections(params: Path) -> dict[str, Any]:
    """A revision's params.yaml as it stands, which may be that of another version; empty if it is none."""
    try:
        document = YAML(typ="safe", pure=True).load(params.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError, OSError):
        return {}
    return document if isinstance(document, dict) else {}


def _fetch(root: Path, revision: str, names: Sequence[str], folder: Path) -> None:
    # Imported here because it takes a second.
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import SCMError
    from dvc_data.index import DataIndexDirError
    from scmrepo.exceptions import SCMError as GitError

    name = names[0]
    try:
        files = DVCFileSystem(str(root), rev=revision)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            files.get_file(name, str(folder / name))
    except (SCMError, GitError) as error:
        raise SqloraError(
            f"revision {revision}",
            found=str(error),
            expected="a branch, tag, commit or experiment of this repository, or `workspace`",
            next_step="`git log --oneline` and `dvc exp show` list what there is.",
        ) from None
    except (DvcException, DataIndexDirError, OSError) as error:
        if not name.startswith("artifacts/"):
            raise SqloraError(
                f"{name} of {revision}",
                found="no such file in that revision",
                expected="the results of a finished run",
                next_step=f"Check {revision} out, run dvc repro and commit results/ with dvc.lock.",
            ) from None
        raise SqloraError(
            f"{name} of {revision}",
            found=f"no copy in DVC's cache or remote ({' '.join(str(error).split())[:200]})",
            expected="the outputs of a finished run",
            next_step=f"Fetch it with `dvc fetch --all-commits`, or check {revision} out and run dvc repro there.",
        ) from None
