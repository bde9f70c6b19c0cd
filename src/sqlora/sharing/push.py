"""Pushes what another clone needs to take over any committed run, which is more than `dvc push` can be told to.

`dvc push --run-cache --all-commits` (DVC 3.67) leaves out two things:

- runs committed before the remote was added: it reads each commit with that commit's own .dvc/config;
- the results that git tracks (`cache: false` in dvc.yaml). A stage that has some is restored from the run cache only if
  their bytes are in DVC's cache or remote.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlora.errors import SqloraError

if TYPE_CHECKING:
    from dvc.repo import Repo


def push_everything(root: Path, name: str) -> int:
    """Send the run cache, the outputs of the workspace and of all commits, and the results of all runs.

    Args:
        name: of the remote.

    Returns:
        How many files were sent.

    Raises:
        SqloraError: if something did not get there.
    """
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            known = {"core": {"remote": name}, "remote": {name: dict(repo.config["remote"][name])}}
        with Repo(str(root), config=known) as repo:
            # DVC remembers what it found in the commits when they did not know the remote yet.
            repo.drop_data_index()
            sent = int(repo.push(run_cache=True, all_commits=True))
            return sent + _push_results(repo)
    except SqloraError:
        raise
    except Exception as error:  # noqa: BLE001 - every kind of storage has its own: no key, no network, no bucket
        raise _unsent(root, " ".join(str(error).split()) or type(error).__name__) from None


def _push_results(repo: Repo) -> int:
    from dvc_data.hashfile.hash_info import HashInfo

    with repo.lock:
        uncached = {out.def_path for out in repo.index.outs if not out.use_cache}
        objects = {
            str(out["md5"])
            for entry in _entries(Path(repo.stage_cache.cache_dir))
            for out in entry.get("outs", [])
            if out["path"] in uncached and "md5" in out
        }
        here = [HashInfo("md5", oid) for oid in sorted(objects) if repo.cache.local.exists(oid)]  # others: `dvc gc`
        result = repo.cloud.push(here)
    if result.failed:
        raise _unsent(Path(repo.root_dir), f"{len(result.failed)} files that did not arrive")
    return len(result.transferred)


def _entries(runs: Path) -> Iterator[dict[str, Any]]:
    """What the run cache says of each run of a stage."""
    from dvc.utils.serialize import YAMLFileCorruptedError, load_yaml

    for path in sorted(runs.glob("*/*/*")):
        if path.name.startswith("."):
            continue  # what a killed DVC left
        try:
            entry = load_yaml(str(path))
        except YAMLFileCorruptedError:
            continue  # DVC itself passes it over with a warning
        if isinstance(entry, dict):
            yield entry


def _unsent(root: Path, found: str) -> SqloraError:
    return SqloraError(
        root.absolute() / ".dvc/config",
        found=found,
        expected="that the remote takes every file",
        next_step="Run `make share` again when that is mended: it goes on with what is missing.",
    )
