"""Sends the small results of every run in the run cache, without which no other clone can restore that run.

A stage with metrics is restored from the run cache only if their bytes are found in DVC's cache or remote. Each run
leaves them in the cache, but `dvc push` leaves out what dvc.yaml marks `cache: false`, as git has it (seen with 3.67).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlora.errors import SqloraError


def push_results(root: Path) -> int:
    """Push them to the default remote; returns how many were sent. Raises SqloraError if some did not get there."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc_data.hashfile.hash_info import HashInfo

    try:
        with Repo(str(root)) as repo, repo.lock:
            uncached = {out.def_path for out in repo.index.outs if not out.use_cache}
            objects = {
                str(out["md5"])
                for entry in _entries(Path(repo.stage_cache.cache_dir))
                for out in entry.get("outs", [])
                if out["path"] in uncached and "md5" in out
            }
            cache = repo.cache.local
            here = [HashInfo("md5", oid) for oid in sorted(objects) if cache.exists(oid)]  # `dvc gc` may have been
            result = repo.cloud.push(here)
    except (DvcException, OSError) as error:
        raise _unsent(root, " ".join(str(error).split())) from None
    if result.failed:
        raise _unsent(root, f"{len(result.failed)} files that did not arrive")
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
        root.absolute(),
        found=found,
        expected="that the results of all runs reach the remote",
        next_step="Run `make share` again: it goes on with what is missing.",
    )
