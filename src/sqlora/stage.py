"""Runs a stage script: its paths from the command line, its values from params.yaml, its errors in one paragraph."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import inspect
import os
import shutil
import subprocess
import sys
import textwrap
import traceback
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from sqlora.errors import SqloraError
from sqlora.params.reader import PARAMS_FILE, read_params

STATE = Path(".sqlora")
CRASH_FILE = STATE / "crash.txt"


def run_stage(main: Callable[..., None]) -> NoReturn:
    """Call a stage's main function and end the process.

    The signature is the stage's contract, which tests hold against dvc.yaml: a `Path` argument (or `Path | None`,
    which may be left out) is a command-line option of that name, a dataclass argument is the section of params.yaml of
    that name. Ends with status 0, 1 (an error) or 130 (interrupted).
    """
    run(lambda: _work(main))


def run(work: Callable[[], object]) -> NoReturn:
    """Call `work` and end the process with its status; turn every exception into a readable message."""
    try:
        status = work()
    except SqloraError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail(
            "interrupted before the stage finished; run the same command again (downloads and training go on)",
            status=130,
        )
    except ModuleNotFoundError as error:
        fail(
            f"{sys.executable}: found no package {error.name}; expected what requirements.txt lists. "
            "Run `pip install -r requirements.txt` in this environment."
        )
    except OSError as error:
        fail(_system_error(error))
    except Exception as error:  # noqa: BLE001 - the outermost boundary: a user must not see a traceback
        # safetensors and MLX raise errors of their own kind for a full disk.
        full = os.strerror(errno.ENOSPC) in str(error) or "[write] Unable to write" in str(error)
        fail(_disk_full() if full else _unexpected(error))
    sys.exit(status if isinstance(status, int) else 0)


def fail(message: str, *, status: int = 1) -> NoReturn:
    """Print one paragraph to stderr and end the process."""
    sys.stdout.flush()
    print(textwrap.fill(f"error: {message}", 110, break_long_words=False, break_on_hyphens=False), file=sys.stderr)
    sys.exit(status)


def stage_contract(main: Callable[..., None]) -> tuple[dict[str, bool], dict[str, type]]:
    """The paths (name -> whether required) and the sections (name -> dataclass) that a stage's signature asks for."""
    paths: dict[str, bool] = {}
    sections: dict[str, type] = {}
    for name, hint in typing.get_type_hints(main).items():
        if name == "return":
            continue
        if dataclasses.is_dataclass(hint):
            sections[name] = typing.cast(type, hint)
        else:
            paths[name] = hint is Path
    return paths, sections


def _work(main: Callable[..., None]) -> None:
    arguments = _arguments(main)
    _share_state()
    main(**arguments)


def _share_state() -> None:
    """Give an experiment that DVC runs in a copy of the project the state of the project itself.

    Otherwise each experiment of a queue would compute the frozen layers' states anew, and lose them with its copy.
    """
    # DVC names the project here, also in the copy.
    root = Path(os.environ.get("DVC_ROOT", ".")).resolve()
    if Path.cwd().resolve().is_relative_to(root / ".dvc/tmp/exps") and not os.path.lexists(STATE):
        (root / STATE).mkdir(exist_ok=True)
        STATE.symlink_to(root / STATE)


def _arguments(main: Callable[..., None]) -> dict[str, Any]:
    paths, sections = stage_contract(main)
    parser = argparse.ArgumentParser(description=inspect.getdoc(sys.modules[main.__module__]))
    for name, required in paths.items():
        parser.add_argument("--" + name.replace("_", "-"), type=Path, required=required, metavar="PATH")
    arguments = vars(parser.parse_args())
    # A mistake in the section of a later stage must be reported before hours of work. The check runs in a process of
    # its own because its code does not shape any stage's output and so must not be a dep of every stage.
    check = subprocess.run([sys.executable, "-m", "sqlora", "check", str(PARAMS_FILE)])
    if check.returncode:
        sys.exit(check.returncode)
    return arguments | read_params(PARAMS_FILE, sections)


def _system_error(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _disk_full(error.filename)
    if error.errno == errno.EFBIG:
        return (
            f"{error.filename or Path.cwd()}: found a limit on the size of a file; expected that a whole file may be "
            "written. Lift the limit (`ulimit -f unlimited`) or move the project to another file system."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
        return (
            f"{error.filename}: found {(error.strerror or str(error)).lower()}; expected one that this user "
            "may read and write. Correct its permissions, or move the project to a file system that can be written."
        )
    return _unexpected(error)


def _disk_full(file: object = None) -> str:
    free = shutil.disk_usage(".").free / 1e9
    return (
        f"{file or Path.cwd()}: found no space left ({free:.1f} GB free in this folder); expected room for the stage's "
        "output and for DVC's copy of it. Free some space and run the same command again."
    )


def _unexpected(error: Exception) -> str:
    found = (
        f"{Path(sys.argv[0]).name}: found {type(error).__name__}: {error}; expected no such failure, so this may be a "
        "bug of sqlora. "
    )
    try:
        CRASH_FILE.parent.mkdir(parents=True, exist_ok=True)
        CRASH_FILE.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError as another:
        return f"{found}Its details could not be written to {CRASH_FILE} ({another})."
    return f"{found}The details are in {CRASH_FILE}; please report them."
