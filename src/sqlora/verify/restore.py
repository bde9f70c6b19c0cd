"""Which commands restore what is damaged, in the order in which they are to be run."""

from __future__ import annotations

import shlex
import subprocess
from hashlib import md5
from pathlib import Path

from sqlora.verify.audit import Audit, Damage

# Deleted first, because DVC takes a file that is there for a good one; sent last, when the cache is whole again.
_PHASES = (
    "rm ",
    "# delete",
    "cp ",
    "chmod ",
    "mv ",
    "dvc fetch",
    "dvc commit",
    "dvc repro",
    "git ",
    "dvc checkout",
    "dvc push",
)


def all_commands(root: Path, audit: Audit) -> list[str]:
    """Every command once, in an order in which each finds what it needs."""
    commands = {command: None for damage in audit.damages for command in restoring(root, audit, damage)}
    return sorted(commands, key=lambda command: next(i for i, start in enumerate(_PHASES) if command.startswith(start)))


def restoring(root: Path, audit: Audit, damage: Damage) -> list[str]:
    """The commands, to be run at the top of the repository, that restore one file."""
    output, oid = damage.output, damage.expected
    path = shlex.quote(damage.path)
    if damage.where == "remote":
        return _resend(audit, damage)
    delete = [f"rm -rf {path}" if (root / damage.path).is_dir() else f"rm -f {path}"]
    if damage.where == "cache":
        refill = _refill(audit, damage, str(oid))
        # A good copy takes the bad one's place in one step: without either, dvc repro would run the stage again.
        return refill if refill[-1].startswith("mv ") and not (root / damage.path).is_dir() else delete + refill
    if oid is None:
        return delete
    if not output.cached:
        return [f"git checkout HEAD -- {path}"] if _git_has(root, damage) else [_repro(damage)]
    if oid.endswith(".dir"):  # a folder of which nobody knows what it should hold
        return [f"rm -rf {path}", *_from_elsewhere(audit, damage, oid), _checkout(damage)]
    if damage.found == "a folder":
        delete = [f"rm -rf {path}"]
    if ("cache", oid) in audit.healthy:
        return [*delete, _checkout(damage)]
    return [*delete, *_from_elsewhere(audit, damage, oid), _checkout(damage)]


def _refill(audit: Audit, damage: Damage, oid: str) -> list[str]:
    """Put a good object where a bad one was."""
    if (copy := audit.healthy.get(("workspace", oid))) is not None:
        place, beside = shlex.quote(damage.path), shlex.quote(damage.path + ".new")
        return [f"cp {shlex.quote(copy)} {beside}", f"chmod 444 {beside}", f"mv -f {beside} {place}"]
    if oid.endswith(".dir") and not _remote_may_have(audit, oid) and damage.output.path not in audit.unread:
        return [f"dvc commit --force {shlex.quote(damage.output.stage)}"]  # writes the listing of what is there
    return _from_elsewhere(audit, damage, oid)


def _from_elsewhere(audit: Audit, damage: Damage, oid: str) -> list[str]:
    if _remote_may_have(audit, oid):
        return [f"dvc fetch {shlex.quote(damage.output.path)}"]
    return [_repro(damage)]


def _remote_may_have(audit: Audit, oid: str) -> bool:
    # Without --remote, nobody knows whether it does; fetching says so.
    return audit.has_remote if audit.remote is None else ("remote", oid) in audit.healthy


def _resend(audit: Audit, damage: Damage) -> list[str]:
    assert audit.remote is not None
    # The listing goes too: while it is there, DVC believes that its files are as well.
    places = {damage.path}
    if damage.output.is_folder:
        places.add(audit.remote.shown(damage.output.oid))
    delete = "rm -f {}" if audit.remote.local else "# delete {} with your storage's own tool"
    commands = [delete.format(shlex.quote(place)) for place in sorted(places)]
    oid = str(damage.expected)
    if ("cache", oid) not in audit.healthy:
        copy = audit.healthy.get(("workspace", oid))
        place = shlex.quote(audit.cache.path(oid))
        commands += [f"cp {shlex.quote(copy)} {place}", f"chmod 444 {place}"] if copy else [_repro(damage)]
    return [*commands, f"dvc push {shlex.quote(damage.output.path)}"]


def _checkout(damage: Damage) -> str:
    return f"dvc checkout --force {shlex.quote(damage.output.path)}"


def _repro(damage: Damage) -> str:
    # --single-item: without it, DVC runs every stage before it again as well.
    return f"dvc repro --force --single-item {shlex.quote(damage.output.stage)}"


def _git_has(root: Path, damage: Damage) -> bool:
    """Whether the last commit has the file as dvc.lock says."""
    shown = subprocess.run(["git", "show", f"HEAD:./{damage.path}"], cwd=root, capture_output=True, check=False)
    return shown.returncode == 0 and md5(shown.stdout, usedforsecurity=False).hexdigest() == damage.expected
