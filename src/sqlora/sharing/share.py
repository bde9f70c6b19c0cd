"""`python -m sqlora share`: sends every committed run to the default remote, and the run cache with it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from sqlora.errors import SqloraError
from sqlora.sharing.push import push_everything
from sqlora.sharing.repository import Remote, dvc, read_settings

NAME = "team"
_OPTION = {"system": ["--system"], "global": ["--global"], "repo": [], "local": ["--local"]}


def share(root: Path, url: str | None) -> None:
    """Add the remote if a URL is given, have DVC verify what comes from it, push, and say what git is yet to carry.

    Raises:
        SqloraError: without a default remote, if there is another one than the URL's, or if not everything was sent.
    """
    remote = _remote(root, url)
    if remote.verify is None:
        # Not every kind of remote knows the setting; then DVC says so, and the push goes on.
        dvc(root, "remote", "modify", *_OPTION[remote.level], remote.name, "verify", "true")
    print(f"{push_everything(root, remote.name)} files pushed to {remote.url}")
    print(_left_to_git(root))


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


def _left_to_git(root: Path) -> str:
    shared = ["dvc.lock", "dvc.yaml", "params.yaml", "results", ".dvc/config"]
    command = ["git", "status", "--porcelain", "--", *shared]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    changed = [line[3:] for line in done.stdout.splitlines()]
    if not changed:
        return "Now `git push`: clones find the run by its dvc.lock."
    return f"Not committed yet: {', '.join(changed)}. Clones see this run after `git commit` and `git push`."
