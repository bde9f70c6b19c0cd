"""What DVC's configuration says about this repository's cache and default remote."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from sqlora.errors import SqloraError


@dataclass(frozen=True)
class Remote:
    """name, url: as DVC resolves it; verify: whether DVC hashes what it pulls from it, None where nobody said so;
    level: the configuration file that has it (system, global, repo or local).
    """

    name: str
    url: str
    verify: bool | None
    level: str


@dataclass(frozen=True)
class Settings:
    """cache: folder of DVC's objects; link_types: in the order in which DVC tries them; remote: the default one."""

    cache: Path
    link_types: tuple[str, ...]
    remote: Remote | None


def read_settings(root: Path) -> Settings:
    """Raises SqloraError outside of a DVC repository, or if its configuration cannot be read."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            cache = repo.cache.local
            return Settings(Path(cache.path), tuple(cache.cache_types), _default_remote(repo.config))
    except (DvcException, OSError) as error:
        raise SqloraError(
            root.absolute(),
            found=" ".join(str(error).split()) or type(error).__name__,
            expected="a DVC repository with a readable .dvc/config",
            next_step="Run it at the top of the repository.",
        ) from None


def dvc(root: Path, *arguments: str) -> int:
    """Print and run a dvc command, with this Python's dvc; returns its status."""
    print(f"+ dvc {' '.join(arguments)}", flush=True)
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=root, check=False).returncode


def _default_remote(config: object) -> Remote | None:
    from dvc.config import Config

    assert isinstance(config, Config)
    name = config["core"].get("remote")
    settings = config["remote"].get(name) if name else None
    if settings is None:
        return None
    # The merged settings have a value for every key; only the files tell whether somebody chose it.
    files = {level: config.load_one(level)["remote"].get(name, {}) for level in Config.LEVELS}
    said = any("verify" in file for file in files.values())
    level = next((level for level in reversed(Config.LEVELS) if "url" in files[level]), "repo")
    return Remote(name, str(settings["url"]), bool(settings["verify"]) if said else None, level)
