"""What a rank leaves for the process that started it, and what it gets from there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

FOLDER = "SQLORA_RANKS"  # in the environment of a rank: where it leaves its ending and its log
BACKEND = "SQLORA_BACKEND"  # the backend of mlx.distributed
TERMINAL = "SQLORA_TERMINAL"  # set if what a rank prints ends up on a terminal
LOST = 75  # status of a rank that ended because another was gone


@dataclass(frozen=True)
class Ending:
    """How a rank ended: 0, 1 (it has printed why) or 130 (asked to)."""

    status: int


def write_ending(folder: Path, rank: int, status: int) -> None:
    """Leave an ending, if the folder of the process that started this rank is on this machine."""
    if folder.is_dir():
        partial = folder / f".ending-{rank}"
        partial.write_text(str(status), encoding="ascii")
        os.replace(partial, folder / f"ending-{rank}")


def read_endings(folder: Path) -> dict[int, Ending]:
    """Rank -> ending, of those that left one."""
    return {
        int(path.name.removeprefix("ending-")): Ending(int(path.read_text(encoding="ascii")))
        for path in folder.glob("ending-*")
    }
