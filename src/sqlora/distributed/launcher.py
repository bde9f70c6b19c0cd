"""The process that runs MLX's own mlx.launch for `sqlora.distributed.launch`, and ends with the stage that started it.

    launcher.py FOLDER PARENT ARGUMENTS-OF-MLX.LAUNCH

Run as a script, never imported. mlx.launch always ends with status 0, so what it says of ranks that died is written to
FOLDER/deaths, a sentence a line. All that it starts on this machine is in this process's group.
"""

from __future__ import annotations

import importlib
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

_LOOK_SECONDS = 0.5


def main() -> None:
    """Call mlx.launch's main function with the rest of the command line."""
    folder, parent = Path(sys.argv[1]), int(sys.argv[2])
    # Imported by name: nothing is computed here, so the fast BLAS that sqlora.mlx loads before MLX is not needed.
    launch: Any = importlib.import_module("mlx._distributed_utils.launch")
    launch.log_warning = lambda *words, **_: _note(folder / "deaths", " ".join(map(str, words)))
    launch.select = _patient
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    sys.argv = ["mlx.launch", *sys.argv[3:]]
    launch.main()


def _note(path: Path, sentence: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(sentence + "\n")


def _patient(
    read: list[int], write: list[int], other: list[int], timeout: float
) -> tuple[list[int], list[int], list[int]]:
    """As select.select, but it waits for what can be read only.

    mlx.launch (0.32.4) also waits until it may write to a rank's stdin. It always may, so its threads never sleep and
    take a whole core for themselves (98% measured).
    """
    if not read:
        time.sleep(min(timeout, 0.05))
    readable = select.select(read, [], other, min(timeout, 0.1))[0] if read else []
    writable = select.select([], write, [], 0)[1] if write else []
    return readable, writable, []


def _end_with(parent: int) -> None:
    """End this process and the ranks when the stage is gone, however it went."""
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
