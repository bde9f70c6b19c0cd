"""Starts a stage again as several ranks, on this machine or on those of a hostfile, through MLX's own mlx.launch."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from sqlora.distributed.ending import BACKEND, FOLDER, LOST, TERMINAL, read_endings
from sqlora.errors import SqloraError
from sqlora.runtime import has_cuda
from sqlora.train.interruption import Watch, watching

_ROOT = Path(".sqlora/ranks")
_BACKENDS = ("ring", "mpi", "nccl", "jaccl", "jaccl-ring")
_GRACE_SECONDS = 20.0  # that mlx.launch gets to end the others when a rank has died
_LOOK_SECONDS = 0.2
_USUAL_PORT = 32323  # mlx.launch's


def launched(workers: int, hostfile: str | None, backend: str) -> bool:
    """Run this very command as several ranks, if more than one is asked for and this is not one of them.

    Args:
        workers: processes on this machine.
        hostfile: of mlx.launch, instead of `workers`; its first host is this machine.
        backend: of mlx.distributed, or `auto`.

    Returns:
        Whether the ranks have done the work; otherwise the caller is to do it.

    Raises:
        SqloraError: a hostfile that does not fit, too few GPUs, a rank that died.
        SystemExit: a rank failed and has said why.
    """
    if FOLDER in os.environ or (workers == 1 and hostfile is None):
        return False
    hosts, backend = _hosts(workers, hostfile, backend)
    folder = _folder()
    command = [sys.executable, str(Path(__file__).with_name("launcher.py")), str(folder), str(os.getpid())]
    command += ["--hostfile", hostfile] if hostfile else ["--hosts", "127.0.0.1", "-n", str(workers)]
    if hostfile and backend == "nccl":
        command += ["-n", str(hosts.count(hosts[0]))]  # so that ranks of one machine take GPUs 0, 1, …
    command += ["--backend", backend, "--cwd", str(Path.cwd())]
    # Between machines a port that is known beforehand can be opened in a firewall. On one machine any will do, and two
    # runs that start at once had better not choose the same.
    port = free_ports(len(hosts), *((_USUAL_PORT,) if hostfile else ()))
    command += ["--starting-port", str(port), "--nccl-port", str(port)]
    for name, value in _environment(hosts, backend, folder).items():
        command += ["--env", f"{name}={value}"]
    command += ["--", sys.executable, *sys.argv]
    with watching() as watch:
        # A session of its own: Ctrl-C reaches this process alone, which asks the ranks to save and end.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        try:
            _wait(process, watch, folder)
            launcher = process.poll() or 0
        finally:
            _kill_group(process)
        _conclude(folder, hosts, launcher, asked=watch.asked)
    shutil.rmtree(folder, ignore_errors=True)
    return True


def free_ports(count: int, *preferred: int) -> int:
    """The first of so many free ports in a row on this machine: a preferred one, or any."""
    rng = random.Random()
    for first in (*preferred, *(rng.randrange(20_000, 32_000) for _ in range(200))):
        if all(_free(port) for port in range(first, first + count)):
            return first
    raise SqloraError(
        "ports 20000 to 32000",
        found=f"no {count} free ones in a row",
        expected="a port for each rank",
        next_step="Close what listens there.",
    )


def _free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _hosts(workers: int, hostfile: str | None, backend: str) -> tuple[list[str], str]:
    """The machine of each rank, and the backend."""
    if hostfile is None:
        chosen = ("nccl" if has_cuda() else "ring") if backend == "auto" else backend
        gpus = len([path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)])
        if chosen == "nccl" and workers > gpus:
            raise SqloraError(
                "params.yaml",
                found=f"{workers} workers and {gpus} GPUs",
                expected="a GPU for each worker",
                next_step=f"Set workers to {max(1, gpus)}.",
            )
        return ["127.0.0.1"] * workers, _startable(chosen)
    if workers != 1:
        raise SqloraError(
            "params.yaml",
            found=f"both hostfile: {hostfile} and workers: {workers}",
            expected="one of them: the hostfile has an entry for each rank",
            next_step="Set workers to 1, or hostfile to null.",
        )
    try:
        content: Any = json.loads(Path(hostfile).read_text(encoding="utf-8"))
        entries = content["hosts"] if isinstance(content, dict) else content
        hosts = [str(entry["ssh"]) for entry in entries]
        named = str(content.get("backend", "")) if isinstance(content, dict) else ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SqloraError(
            hostfile,
            found="no such file" if isinstance(error, FileNotFoundError) else f"no hostfile ({error!r})",
            expected='JSON such as [{"ssh": "127.0.0.1", "ips": ["192.168.1.2"]}, {"ssh": "other", "ips": …}]',
            next_step="Make one with mlx.distributed_config, as docs/guides/several-machines.md describes.",
        ) from None
    chosen = (named or ("nccl" if has_cuda() else "ring")) if backend == "auto" else backend
    if len(hosts) < 2 or chosen not in _BACKENDS:
        raise SqloraError(
            hostfile,
            found=f"{len(hosts)} hosts and the backend {chosen}",
            expected=f"two or more hosts, and one of {', '.join(_BACKENDS)}",
            next_step="Correct the hostfile, or set hostfile to null.",
        )
    return hosts, _startable(chosen)


def _startable(backend: str) -> str:
    """The backend, if what starts its ranks is there."""
    if backend == "mpi" and shutil.which("mpirun") is None:
        raise SqloraError(
            "backend: mpi",
            found="no program mpirun",
            expected="an MPI that is installed, or another backend",
            next_step="Install Open MPI, or set backend to auto.",
        )
    return backend


def _environment(hosts: list[str], backend: str, folder: Path) -> dict[str, str]:
    """What the ranks need; those on other machines inherit nothing of this process's environment."""
    # NVLink multicast is refused on many shared hosts, and then NCCL does not start at all.
    result = {FOLDER: str(folder), BACKEND: backend, "NCCL_NVLS_ENABLE": os.environ.get("NCCL_NVLS_ENABLE", "0")}
    if sys.stderr.isatty():
        result[TERMINAL] = "1"
    most = max(Counter(hosts).values())
    if backend != "nccl" and most > 1:
        result["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // most))
    for name in ("PYTHONPATH", "OMP_NUM_THREADS", "SQLORA_BLAS"):
        if name in os.environ:
            result[name] = os.environ[name]
    return result


def _folder() -> Path:
    """A new folder for what the ranks leave; those of runs that are gone are dropped."""
    _ROOT.mkdir(parents=True, exist_ok=True)
    for old in _ROOT.iterdir():
        if not (old.name.isdigit() and psutil.pid_exists(int(old.name))):
            shutil.rmtree(old, ignore_errors=True)
    folder = _ROOT / str(os.getpid())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _wait(process: subprocess.Popen[bytes], watch: Watch, folder: Path) -> None:
    """Until all ranks are through; pass on that the run is to end, and do not wait for ever after a death."""
    told, deadline = False, None
    while process.poll() is None:
        if watch() and not told:
            told = True
            assert process.stdin
            with suppress(BrokenPipeError):  # it has just ended
                process.stdin.write(b"stop\n")  # mlx.launch hands it on to every rank
                process.stdin.flush()
        if deadline is None and (folder / "deaths").exists():
            deadline = time.monotonic() + _GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            return
        time.sleep(_LOOK_SECONDS)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Whatever is still there of the launcher and its ranks on this machine."""
    with suppress(ProcessLookupError, PermissionError):  # nothing left; on macOS, only zombies left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _conclude(folder: Path, hosts: list[str], launcher: int, *, asked: bool) -> None:
    """Return if the first rank did its work; otherwise end as it did, or say what died."""
    endings = read_endings(folder)
    first = endings.get(0)
    if first and first.status == 0:
        return
    if asked or (first and first.status == 130):
        if first:
            raise SystemExit(130)  # it has said so
        raise KeyboardInterrupt
    if not launcher and any(ending.status for ending in endings.values()):
        raise SystemExit(1)
    raise _death(folder, hosts, launcher)


def _death(folder: Path, hosts: list[str], launcher: int) -> SqloraError:
    try:
        text = (folder / "deaths").read_text(encoding="utf-8")
    except FileNotFoundError:
        text = ""
    deaths = [(int(rank), int(code)) for rank, code in re.findall(r"rank (\d+) exited with code (-?\d+)", text)]
    # Ranks that noticed the death of another, or were ended because of it, are not the cause.
    causes = [(rank, code) for rank, code in deaths if code not in (LOST, -signal.SIGTERM)]
    rank, code = next(iter(causes or deaths), (None, 0))
    if launcher or rank is None:
        who, how = "mlx.launch", _end(launcher)
    else:
        who = f"rank {rank} of {len(hosts)} on {hosts[rank]}"
        how = _end(code)
    return SqloraError(
        who,
        found=f"{how}, so the ranks that were left were ended",
        expected="that all ranks work until the end",
        next_step=f"Run dvc repro again: it goes on from the last checkpoint. What the ranks said is in {folder}.",
    )


def _end(code: int) -> str:
    if code >= 0:
        return f"its end with status {code}"
    try:
        return f"its end by {signal.Signals(-code).name}"
    except ValueError:
        return f"its end by signal {-code}"
