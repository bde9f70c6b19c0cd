"""Runs a conversion in a process of its own.

All of it, not only the unpickling: whatever a hostile file does to the process (a crash, memory without end), the stage
lives on to say so and to remove what was written; and all memory goes back to the system at the end, which neither
torch nor MLX promises within a process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from sqlora.errors import SqloraError


def convert_in_child(source: Path, folder: Path, *, dtype: str, quantize: int | None, group_size: int) -> list[str]:
    """`sqlora.convert.model.convert_model` in a child process; the same arguments, result and errors.

    Raises:
        SqloraError: also if the process dies.
        OSError: what the child met: a full disk, a folder that cannot be written.
    """
    job = {"source": str(source), "folder": str(folder), "dtype": dtype, "quantize": quantize, "group_size": group_size}
    command = [sys.executable, "-P", "-m", "sqlora.convert.child", json.dumps(job)]
    # Nothing is fetched here, and no library shall try.
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as child:
        try:
            assert child.stdout
            answer = child.stdout.read()
            status = child.wait()
        except BaseException:
            child.kill()
            child.wait()  # Popen does not wait after an interrupt, and the folder is about to be removed
            raise
    return _result(answer, status, source)


def _result(answer: bytes, status: int, source: Path) -> list[str]:
    try:
        result = json.loads(answer)
    except ValueError:
        result = {}
    if "notes" in result and status == 0:
        return list(result["notes"])
    if "error" in result:
        where, found, expected, next_step = result["error"]
        raise SqloraError(where, found=found, expected=expected, next_step=next_step)
    if "os_error" in result:
        raise OSError(*result["os_error"])
    if "crash" in result:
        short, trace = result["crash"]
        raise RuntimeError(short) from RuntimeError(trace)  # the trace is for the crash file
    killed = status == -signal.SIGKILL
    raise SqloraError(
        source,
        found=f"a conversion that ended with {_status(status)}"
        + (", which the system does when memory runs out" if killed else ""),
        expected="a conversion that comes to its end",
        next_step="Close other programs and run the same command again."
        if killed
        else "Run the same command again; if it ends so again, the model's files are damaged: fetch them again.",
    )


def _status(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


def _main() -> None:
    # An interrupt reaches both processes; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Whatever a library prints must not be taken for the answer.
    answer = os.dup(1)
    os.dup2(2, 1)
    job = json.loads(sys.argv[1])
    with open(answer, "w", encoding="utf-8") as handle:
        json.dump(_convert(job), handle)


def _convert(job: dict[str, Any]) -> dict[str, Any]:
    try:
        # Here, because the parent has no use for torch.
        from sqlora.convert.model import convert_model

        source, folder = Path(job.pop("source")), Path(job.pop("folder"))
        return {"notes": convert_model(source, folder, **job)}
    except SqloraError as error:
        return {"error": [error.where, error.found, error.expected, error.next_step]}
    except OSError as error:
        if error.errno is not None:
            return {"os_error": [error.errno, error.strerror, str(error.filename) if error.filename else None]}
        return {"crash": [f"{type(error).__name__}: {error}", traceback.format_exc()]}
    except Exception as error:  # noqa: BLE001 - the parent is the one that reports it
        return {"crash": [f"{type(error).__name__}: {error}", traceback.format_exc()]}


def _end_with_parent() -> None:
    """A parent that is killed closes this pipe; nothing may go on writing to its folder then."""
    os.read(0, 1)  # not through sys.stdin, whose lock a thread must not hold at the end
    os._exit(1)


if __name__ == "__main__":
    _main()
