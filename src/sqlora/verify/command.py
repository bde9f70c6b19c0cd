"""`python -m sqlora verify`: is everything that DVC keeps still what it was?"""

from __future__ import annotations

import json
from pathlib import Path

from sqlora.verify.audit import Audit, Damage, audit
from sqlora.verify.restore import all_commands, restoring

_SHOWN = 10


def run(root: Path, *, remote: bool, as_json: bool) -> int:
    """Verify and print; returns 1 if something is damaged or the remote that was asked has nothing."""
    result = audit(root, remote=remote)
    commands = all_commands(root, result)
    print(_json(root, result, commands) if as_json else _text(result, commands, remote))
    return 1 if result.damages or _empty_remote(result) else 0


def _empty_remote(result: Audit) -> bool:
    """Whether a remote was asked and had nothing; one that cannot be reached looks like that."""
    asked = result.remote is not None and any(place == "remote" for place, _ in result.absent)
    return asked and not result.reached_remote


def _json(root: Path, result: Audit, commands: list[str]) -> str:
    document = {
        "files": result.files,
        "damaged": [
            {
                "where": damage.where,
                "path": damage.path,
                "output": damage.output.path,
                "stage": damage.output.stage,
                "expected": damage.expected,
                "found": damage.found,
                "restore": restoring(root, result, damage),
            }
            for damage in result.damages
        ],
        "absent": [{"where": where, "path": path} for where, path in result.absent],
        "unread": result.unread,
        "restore": commands,
    }
    return json.dumps(document, indent=2)


def _text(result: Audit, commands: list[str], remote: bool) -> str:
    places = "workspace, cache and remote" if remote else "workspace and cache (--remote: the remote as well)"
    lines = [f"{result.files} files in {places}, {len(result.damages)} damaged"]
    if not result.files and not result.absent:
        lines = ["dvc.lock records no output yet: nothing to verify. `dvc repro` makes some."]
    lines += [_line(damage) for damage in result.damages]
    for where in ("workspace", "cache", "remote"):
        paths = [path for place, path in result.absent if place == where]
        if paths:
            more = f" and {len(paths) - _SHOWN} more" * (len(paths) > _SHOWN)
            lines.append(f"not in the {where}, which is no damage: {', '.join(paths[:_SHOWN])}{more}")
            if where == "cache":
                lines.append(
                    "But if it is a stage's output, the next `dvc repro` runs the stage again. `dvc fetch` brings "
                    "what a remote has; `dvc commit --force STAGE` takes what is in the workspace."
                )
    if _empty_remote(result):
        lines.append("nothing at all was found in the remote: check its address and the connection, or run `dvc push`")
    lines += [f"the files of {path} are unknown: its listing is not in the cache" for path in result.unread]
    if commands:
        lines += ["", "To restore, run these in this order, then verify again:", *(f"    {line}" for line in commands)]
        if any(" repro " in command for command in commands):
            lines.append("A stage that computes on another machine or reads a clock may write other bytes than before.")
    return "\n".join(lines)


def _line(damage: Damage) -> str:
    expected = f"md5 {damage.expected}" if damage.expected else "no such file"
    found = damage.found if " " in damage.found else f"md5 {damage.found}"
    return f"damaged in the {damage.where}: {damage.path}: found {found}; expected {expected}"
