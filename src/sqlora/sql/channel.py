"""A helper process and the two pipes to it, with time limits; it may die, hang or send nonsense.

A frame is one byte that says what follows, four bytes of its length (big-endian), and JSON in UTF-8.
"""

from __future__ import annotations

import json
import os
import select
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_HEADER = struct.Struct(">cI")


class NoAnswerError(Exception):
    """Nothing came, or nothing was taken, before the deadline."""


class EndedError(Exception):
    """The process is gone.

    Args:
        status: its exit status; -n for signal n; None if it only closed its pipe.
    """

    def __init__(self, status: int | None) -> None:
        super().__init__(f"the process that runs the SQL ended (status {status})")
        self.status = status


class NonsenseError(Exception):
    """What came is no proper frame."""

    def __init__(self) -> None:
        super().__init__("the process that runs the SQL gave no proper answer")


def frame(kind: bytes, value: object) -> bytes:
    """A value (of what JSON knows, NaN and infinities included) ready to be sent."""
    data = json.dumps(value).encode("ascii")
    return _HEADER.pack(kind, len(data)) + data


class Channel:
    """A Python script in a process of its own.

    Args:
        script: may import the standard library and installed packages only.
        most: bytes of the longest frame that may come back.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(self, script: Path, most: int) -> None:
        self._most = most
        self._received = bytearray()
        self._process = subprocess.Popen(
            # Absolute, because of cwd: where PATH holds a relative folder, so does sys.executable. -I: neither the
            # environment, the user's own packages nor the current folder decide what it imports.
            [str(Path(sys.executable).absolute()), "-I", "-B", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            start_new_session=True,  # Ctrl-C and Ctrl-Z are the host's
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._pipes = (self._process.stdin, self._process.stdout)
        self._to, self._from = (pipe.fileno() for pipe in self._pipes)
        os.set_blocking(self._to, False)
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(self._from, select.POLLIN)
        self._writable.register(self._to, select.POLLOUT)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def write(self, data: bytes, deadline: float) -> None:
        """Send a frame; `deadline` is a time of `time.monotonic()`.

        Raises:
            NoAnswerError, EndedError
        """
        rest = memoryview(data)
        while rest:
            _wait(self._writable, deadline)
            try:
                rest = rest[os.write(self._to, rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise EndedError(self._status()) from None

    def read(self, deadline: float) -> tuple[bytes, Any, int]:
        """The next frame: its kind, its value, its length in bytes.

        Raises:
            NoAnswerError, EndedError, NonsenseError
        """
        kind, length = _HEADER.unpack(self._take(_HEADER.size, deadline))
        if length > self._most:
            raise NonsenseError
        try:
            return kind, json.loads(self._take(length, deadline)), length
        except (ValueError, RecursionError):
            raise NonsenseError from None

    def end(self) -> None:
        """Kill the process, whatever it is doing, and leave no zombie."""
        try:
            self._process.kill()  # it has nothing to lose
        finally:
            self._process.wait()
            for pipe in self._pipes:
                pipe.close()

    def _take(self, length: int, deadline: float) -> bytes:
        while len(self._received) < length:
            _wait(self._readable, deadline)
            data = os.read(self._from, 1 << 16)
            if not data:
                raise EndedError(self._status())
            self._received += data
        taken = bytes(self._received[:length])
        del self._received[:length]
        return taken

    def _status(self) -> int | None:
        try:
            return self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return None


def _wait(poll: select.poll, deadline: float) -> None:
    # Even when the time is up, as after a pause of this process, what is there already counts.
    if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
        raise NoAnswerError
