"""`python -m sqlora setup-cache`: how DVC puts artifacts into the workspace without a second copy of them."""

from __future__ import annotations

import os
from pathlib import Path

from sqlora.errors import SqloraError
from sqlora.sharing.repository import dvc, read_settings

# From the one that costs nothing to the one that doubles the space.
LINK_TYPES = ("reflink", "hardlink", "symlink", "copy")
COSTS = {
    "reflink": "the file system shares the bytes until one side is changed: no space, nothing to mind",
    "hardlink": "one file with two names: no space; artifacts are read-only, as changing one would change the cache",
    "symlink": "artifacts point into the cache: no space; read-only, and broken if the cache goes",
    "copy": "every artifact is there twice; the workspace's may be changed",
}
_WORKSPACE = "artifacts"


def working_links(cache: Path, workspace: Path) -> list[str]:
    """Which of DVC's link types work from one folder to the other, tried on a small file; the best first."""
    from dvc_objects.fs.generic import test_links
    from dvc_objects.fs.local import LocalFileSystem

    disk = LocalFileSystem()  # type: ignore[no-untyped-call]
    return list(test_links(list(LINK_TYPES), disk, str(cache), disk, str(workspace / "file")))


def setup_cache(root: Path, chosen: str | None) -> int:
    """Choose a link type, write it to .dvc/config.local (it is this machine's), and link what is there anew.

    Args:
        chosen: the best that works if None.

    Raises:
        SqloraError: if the chosen one does not work here, or cache or workspace cannot be written.
    """
    settings, workspace = read_settings(root), root / _WORKSPACE
    works = _try(settings.cache, workspace)
    link = chosen or works[0]
    if link not in works:
        raise SqloraError(
            workspace.absolute(),
            found=f"that {link} does not work from {settings.cache}",
            expected=f"one that does: {', '.join(works)}",
            next_step="Take one of these, or keep cache and workspace on one file system (`dvc cache dir`).",
        )
    for name in LINK_TYPES:
        mark = "->" if name == link else "  "
        print(f"{mark} {name:<9} {'works' if name in works else 'no':<6} {COSTS[name]}")
    if link in ("hardlink", "symlink") and os.geteuid() == 0:
        print("You are root, whom read-only files do not stop: change no file in artifacts/ by hand.")
    # Alone: where DVC may also copy, it takes what a stage has just written for such a copy and makes no link of it.
    if status := dvc(root, "config", "--local", "cache.type", link):
        return status
    # What was never pulled stays away.
    return dvc(root, "checkout", "--relink", "--allow-missing")


def _try(cache: Path, workspace: Path) -> list[str]:
    try:
        return working_links(cache, workspace)
    except OSError as error:
        raise SqloraError(
            cache, found=str(error), expected="that a file can be written there", next_step="Correct the permissions."
        ) from None
