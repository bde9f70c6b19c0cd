"""`python -m sqlora share`: sends every committed run to the default remote, and the run cache with it.

What `dvc push --run-cache --all-commits` leaves out, and why that matters, is in sqlora.sharing.results.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from sqlora.errors import SqloraError
from sqlora.sharing.repository import Remote, dvc, read_settings
from sqlora.sharing.results import push_results

NAME = "team"
# Run cache entries of other runs travel without their outputs unless all commits' outputs do.
PUSH = ("push", "--run-cache", "--all-commits")
_OPTION = {"system": ["--system"], "global": ["--global"], "repo": [], "local": ["--local"]}


def share(root: Path, url: str | None) -> int:
    """Add the remote if a URL is given, have DVC verify what comes from it, push, and say what git is yet to carry.

    Returns:
        The status of `dvc push`.

    Raises:
        SqloraError: without a default remote, or if there is another one than the URL's.
    """
    remote = _remote(root, url)
    if remote.verify is None:
        # Not every kind of remote knows the setting; then DVC says so, and the push goes on.
        dvc(root, "remote", "modify", *_OPTION[remote.level], remote.name, "verify", "true")
    status = dvc(root, *PUSH)
    if status == 0:
        push_results(root)
        for line in _left_to_git(root):
            print(line)
    return status


def _remote(root: Path, url: str | None) -> Remote:
    remote = read_settings(root).remote
    if remote is None and url is not None:
        if dvc(root, "remote", "add", "--default", NAME, url):
            raise SqloraError(
                url,
                found="an address that DVC does not take",
                expected="one of DVC's",
                next_step="See its message above.",
            )
        remote = read_settings(root).remote
    elif remote is not None and url is not None and not _same(root, remote.url, url):
        raise SqloraError(
            root.absolute() / ".dvc/config",
            found=f"the default remote {remote.name} at {remote.url}",
            expected=f"none, or one at {url}",
            next_step=f"Leave REMOTE out, or run `dvc remote modify {remote.name} url {url}` first.",
        )
    if remote is None:
        raise SqloraError(
            root.absolute() / ".dvc/config",
            found="no default remote",
            expected="one to push to",
            next_step="Run `make share REMOTE=PATH_OR_URL` once, such as REMOTE=/mnt/team or REMOTE=s3://bucket/folder.",
        )
    return remote


def _same(root: Path, known: str, url: str) -> bool:
    return known.rstrip("/") == url.rstrip("/") or ("://" not in url and Path(known) == (root / url).resolve())


def _left_to_git(root: Path) -> list[str]:
    """What clones will not see until git has it."""
    shared = ["dvc.lock", "dvc.yaml", "params.yaml", "results", ".dvc/config"]
    command = ["git", "status", "--porcelain", "--", *shared]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    changed = [line[3:] for line in done.stdout.splitlines()]
    if not changed:
        return ["Now `git push`: clones find the run by its dvc.lock."]
    return [f"Not committed yet: {', '.join(changed)}. Clones see this run after `git commit` and `git push`."]
