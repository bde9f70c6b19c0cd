"""What a process does to be a rank: it joins the others, leaves the talking to the first, and ends when told to."""

from __future__ import annotations

import io
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

from sqlora.mlx import mx

from sqlora.distributed.ending import BACKEND, FOLDER, LOST, TERMINAL, write_ending
from sqlora.distributed.group import ALONE, Group
from sqlora.errors import SqloraError
from sqlora.train.interruption import watching

_EXIT_SECONDS = 20.0  # to save a checkpoint in when the launcher is gone
_FIRST_SPEAKS_SECONDS = 3.0


@contextmanager
def joined() -> Iterator[Group]:
    """The group that `launched` started this process for, or the group of one; to be held around the work.

    Only the first rank prints. The others' output goes to a log, and so does what native code prints in any rank.
    """
    if FOLDER not in os.environ:
        yield ALONE
        return
    folder, rank = Path(os.environ[FOLDER]).resolve(), _rank()
    here = folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    spoken = _redirect(folder / f"rank-{rank}.log", speaks=rank == 0)
    orders = _Orders()
    try:
        if rank == 0 and not here:
            raise SqloraError(
                socket.gethostname(),
                found="the first rank on another machine or in another folder than the stage that started it",
                expected="this machine as the first host of the hostfile",
                next_step="Put this machine first.",
            )
        handle = _connect(os.environ[BACKEND])
        if rank == 0 or os.environ[BACKEND] != "mpi":  # mpirun gives its input to the first rank only
            orders.listen()
        yield Group(handle, _same_disk(handle, folder), orders)
    except KeyboardInterrupt:
        if rank:
            raise SystemExit(0) from None
        write_ending(folder, rank, 130)
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and str(error).startswith(("[ring]", "[nccl]", "[mpi]", "[jaccl]")):
            os.write(2, f"lost the others: {error}\n".encode())
            raise SystemExit(LOST) from None
        if rank:
            time.sleep(_FIRST_SPEAKS_SECONDS)  # most errors are everybody's: the first rank tells, and all are ended
            sys.stderr = spoken
            print(f"rank {rank} on {socket.gethostname()}:", file=spoken)
        write_ending(folder, rank, 1)
        raise
    if rank == 0:
        write_ending(folder, rank, 0)


@contextmanager
def watching_together(group: Group) -> Iterator[Callable[[], bool]]:
    """As sqlora.train.interruption.watching, with an answer on which all ranks agree."""
    if group.size == 1:
        with watching() as watch:
            yield watch
    else:
        # The process that started the ranks watches dvc and takes the signals. SIGTERM ends a rank at once: that is
        # how mlx.launch ends those that wait for a dead one.
        yield group.stop


def _rank() -> int:
    for name in ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"):  # mlx.launch's own, Open MPI's, other MPIs'
        if name in os.environ:
            return int(os.environ[name])
    raise SqloraError(
        "the environment",
        found="no number of this rank",
        expected="one that mlx.launch or mpirun sets",
        next_step="Unset SQLORA_RANKS, or take another train.backend.",
    )


def _connect(backend: str) -> mx.distributed.Group:
    try:
        return mx.distributed.init(strict=True, backend="jaccl" if backend == "jaccl-ring" else backend)
    except RuntimeError as error:
        raise SqloraError(
            f"mx.distributed on {socket.gethostname()}",
            found=f"no connection to the other ranks ({error})",
            expected=f"that the backend {backend} connects them",
            next_step="Check the hostfile's addresses and that no firewall is between the machines.",
        ) from None


class _Orders:
    """Whether the process that started the ranks has asked them to end."""

    def __init__(self) -> None:
        self._asked = False

    def __call__(self) -> bool:
        return self._asked

    def listen(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while data := os.read(0, 4096):
            self._asked |= b"stop" in data
        # The launcher is gone, and nobody would end a rank that waits for another one.
        self._asked = True
        time.sleep(_EXIT_SECONDS)
        os._exit(LOST)


def _redirect(log: Path, *, speaks: bool) -> TextIO:
    """Send file descriptor 2 to a log, and all of Python's output unless this rank speaks; returns the old stderr."""
    file = open(log, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - open as long as the process
    old = cast(TextIO, _Stderr(os.dup(2)))
    os.dup2(file.fileno(), 2)
    if not speaks:
        sys.stdout.flush()
        os.dup2(file.fileno(), 1)
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # it is a pipe
    sys.stderr = old if speaks else file
    return old


class _Stderr:
    """A text stream that says it is a terminal where the first process's is one, so that progress bars redraw."""

    def __init__(self, descriptor: int) -> None:
        self._stream = open(descriptor, "w", encoding="utf-8", errors="replace", buffering=1)  # noqa: SIM115

    def isatty(self) -> bool:
        return TERMINAL in os.environ

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _same_disk(handle: mx.distributed.Group, folder: Path) -> list[int]:
    """The ranks whose files this one sees."""
    rank, size = handle.rank(), handle.size()
    (folder / f"here-{rank}").touch()
    mx.eval(mx.distributed.all_sum(mx.zeros(1), group=handle))
    return [other for other in range(size) if (folder / f"here-{other}").exists()]
