"""When a training run is to end early: somebody pressed Ctrl-C, or the dvc that started it is gone."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

_BETWEEN_LOOKS = 1.0  # seconds


class Interrupted(Exception):  # noqa: N818 - no error: somebody asked for it
    """The run was asked to end; what it had is saved."""


class Watch:
    """Called before every step; true from the moment on at which the run is to end."""

    def __init__(self) -> None:
        self.asked = False
        self._dvc = _dvc_above()
        self._next = 0.0

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self.asked and self._dvc and now >= self._next:
            self._next = now + _BETWEEN_LOOKS
            # A killed dvc leaves its children alive, and the next `dvc repro` would start a second run beside this one.
            self.asked = not self._dvc.is_running()
        return self.asked

    def ask(self, number: int, frame: FrameType | None) -> None:
        """As a signal handler: the first signal ends the run after this step, the second one at once."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def watching() -> Iterator[Watch]:
    """A watch that Ctrl-C and SIGTERM reach while the block runs."""
    watch = Watch()
    before = {number: signal.signal(number, watch.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield watch
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _dvc_above() -> psutil.Process | None:
    try:
        for process in psutil.Process().parents():
            if any("dvc" in word.rsplit("/", 1)[-1] for word in process.cmdline()[:3]):
                return process
    except psutil.Error:
        return None
    return None
