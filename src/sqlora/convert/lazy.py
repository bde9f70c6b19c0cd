"""Reads tensors of safetensors files one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sqlora.errors import SqloraError

# Pages of a mapped file count as this process's memory until the mapping is given up, so it is given up now and then.
REOPEN_BYTES = 256_000_000


class LazyTensors:
    """The tensors of several safetensors files by name.

    shapes and dtypes: of every tensor, from the files' headers; a dtype in safetensors' spelling (BF16, F32, …).
    files: name -> its file.

    Raises:
        SqloraError: for a file that is missing, damaged or truncated, or a name that two files have.
    """

    def __init__(self, files: Sequence[Path], next_step: str) -> None:
        self.next_step = next_step
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._touched = 0
        self._handles: dict[Path, Any] = {}
        self._stack = ExitStack()
        for path in files:
            handle = self._open(path)
            for name in handle.keys():  # noqa: SIM118 - no dictionary
                if name in self.files:
                    raise self._bad(path, f"a second tensor {name}, which {self.files[name].name} has as well")
                piece = handle.get_slice(name)
                self.files[name] = path
                self.shapes[name] = tuple(piece.get_shape())
                self.dtypes[name] = str(piece.get_dtype())

    def load(self, name: str) -> torch.Tensor:
        """The tensor of that name; it may be the file's mapped memory, so do not change it."""
        if self._touched > REOPEN_BYTES:
            self.close()
        path = self.files[name]
        try:
            tensor: torch.Tensor = self._open(path).get_tensor(name)
        except (SafetensorError, RuntimeError, OSError) as error:
            raise self._bad(path, f"a tensor {name} that cannot be read ({error})") from None
        self._touched += tensor.nbytes
        return tensor

    def close(self) -> None:
        """Give up all mappings; the next `load` makes them anew."""
        self._handles.clear()
        self._stack.close()
        self._touched = 0

    def _open(self, path: Path) -> Any:
        if path not in self._handles:
            try:
                self._handles[path] = self._stack.enter_context(safe_open(path, framework="pt"))
            except FileNotFoundError:
                raise self._bad(path, "no such file") from None
            except (SafetensorError, OSError, RuntimeError) as error:
                found = f"a damaged or foreign file ({type(error).__name__}: {str(error)[:150]})"
                raise self._bad(path, " ".join(found.split())) from None
        return self._handles[path]

    def _bad(self, path: Path, found: str) -> SqloraError:
        return SqloraError(path, found=found, expected="a whole safetensors file", next_step=self.next_step)
