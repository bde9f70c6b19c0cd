"""Reads consolidated.NN.pth, a Mistral-format model's weights: pickles of strangers, opened without running them."""

from __future__ import annotations

import pickle
import resource
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sqlora.convert.checkpoint import CONFIG_FILE, MistralConfig, expected_shapes, listing
from sqlora.errors import SqloraError

# Pages of a mapped file count as this process's memory until the mapping is given up, so it is given up now and then.
REOPEN_BYTES = 256_000_000
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_MAX_PICKLE = 16_000_000  # Mistral-7B's is 36 kB
_HEADROOM = 4_000_000_000
_BY_ROWS = (".wq.weight", ".wk.weight", ".wv.weight", ".w1.weight", ".w3.weight", "output.weight")
_BY_COLUMNS = (".wo.weight", ".w2.weight", "tok_embeddings.weight")


def weight_files(folder: Path) -> list[Path]:
    """consolidated.00.pth and those that follow; raises SqloraError for a gap."""
    found = sorted(folder.glob("consolidated.[0-9][0-9].pth"))
    files = [folder / f"consolidated.{number:02d}.pth" for number in range(max(len(found), 1))]
    if found and found != files:
        raise SqloraError(
            folder,
            found=", ".join(path.name for path in found),
            expected=", ".join(path.name for path in files),
            next_step="Fetch the model again: shards of the weights are missing.",
        )
    return files


class PickledWeights:
    """The tensors of one or several shards, mapped into memory and checked against the config.

    Several shards are what model-parallel training writes: each matrix is cut along its rows or its columns, and norms
    are repeated in every shard.

    Raises:
        SqloraError: if a file is missing, damaged or wants to run code, or does not fit the config; every tensor at
            fault in any of the files is named.
    """

    def __init__(self, files: Sequence[Path], config: MistralConfig) -> None:
        self.files = list(files)
        self.config = config
        self.shapes = dict[str, tuple[int, ...]]()
        self._touched = 0
        self._states: list[dict[str, torch.Tensor]] = []
        self._open()

    def where(self, name: str) -> str:
        """The place of a tensor, for messages."""
        return (
            f"{self.files[0] if len(self.files) == 1 else self.files[0].parent / 'consolidated.*.pth'}, tensor {name}"
        )

    def load(self, name: str) -> torch.Tensor:
        """The whole tensor of that name, in its own dtype; it may be the file's mapped memory, so do not change it."""
        if self._touched > REOPEN_BYTES:
            self._open()
        parts = [state[name] for state in self._states]
        self._touched += sum(part.nbytes for part in parts)
        if len(parts) == 1:
            return parts[0]
        if parts[0].ndim == 1:
            if any(not torch.equal(parts[0], part) for part in parts[1:]):
                raise SqloraError(
                    self.where(name),
                    found="values that differ from shard to shard",
                    expected="the same values in each, as every shard repeats the norms",
                    next_step="The shards are of different checkpoints: fetch the model again.",
                )
            return parts[0]
        return torch.cat(parts, dim=0 if name.endswith(_BY_ROWS) else 1)

    def _open(self) -> None:
        # Before the new mappings are made, or the old ones would count beside them.
        self._states, self._touched = [], 0
        states = [_read(path) for path in self.files]
        # Compared by count first, so that an absurd n_layers in params.json is not spelled out.
        if self.config.n_layers > len(states[0]):
            found = f"{len(states[0])} tensors, fewer than {CONFIG_FILE} has layers ({self.config.n_layers})"
            raise _bad_weights(self.files[0], found)
        self.shapes = expected_shapes(self.config)
        wrong = self.files[0]
        problems: list[str] = []
        shards = len(self.files)
        if any(shape[0] % shards for name, shape in self.shapes.items() if name.endswith(_BY_ROWS)) or any(
            shape[-1] % shards for name, shape in self.shapes.items() if name.endswith(_BY_COLUMNS)
        ):
            problems.append(f"{shards} shards do not divide the sizes in {CONFIG_FILE}")
        for path, state in zip(self.files, states, strict=True):
            here = f"{path.name}: " if len(self.files) > 1 else ""
            own = _problems(state, self.shapes, len(self.files))
            problems += [here + problem for problem in own]
            if own and len(problems) == len(own):
                wrong = path
        if problems:
            raise _bad_weights(wrong, listing(problems))
        self._states = [{name: state[name].detach() for name in self.shapes} for state in states]


def _problems(state: Mapping[Any, Any], shapes: Mapping[str, tuple[int, ...]], shards: int) -> list[str]:
    problems = [f"{name} is missing" for name in shapes if name not in state]
    for name, tensor in state.items():
        if name not in shapes:
            problems.append(f"{str(name)[:100]} is not a tensor of this architecture")
        elif not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            problems.append(f"{name} is no dense tensor")
        elif tuple(tensor.shape) != (shape := _part(name, shapes[name], shards)):
            of = f" in each of {shards} shards" if shards > 1 else ""
            problems.append(f"{name} has shape {tuple(tensor.shape)} where {CONFIG_FILE} implies {shape}{of}")
        elif tensor.dtype not in _FLOATS:
            problems.append(f"{name} is {tensor.dtype}, not float32, bfloat16 or float16")
        elif tensor.device.type != "cpu":
            problems.append(f"{name} holds no values ({tensor.device} device)")
    return problems


def _part(name: str, shape: tuple[int, ...], shards: int) -> tuple[int, ...]:
    """What a shard holds of a tensor of that shape."""
    if name.endswith(_BY_ROWS):
        return (shape[0] // shards, *shape[1:])
    if name.endswith(_BY_COLUMNS):
        return (*shape[:-1], shape[-1] // shards)
    return shape


def _read(path: Path) -> Mapping[Any, Any]:
    if not path.is_file():
        raise _bad_weights(path, "no such file")
    try:
        _refuse_compressed(path)
        with _memory_limit(path):
            state: Any = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # noqa: BLE001 - a damaged file can fail anywhere in torch's reader, with any type
        # torch's own text advises weights_only=False, which runs whatever code the file holds; it is not passed on.
        if isinstance(error, pickle.UnpicklingError):
            found = "a pickle that is damaged or asks for more than plain tensors, maybe to run code (nothing was run)"
        else:
            found = f"a damaged or foreign file ({type(error).__name__}: {str(error)[:150]})"
        raise _bad_weights(path, " ".join(found.split())) from None
    if not isinstance(state, Mapping):
        raise _bad_weights(path, f"a {type(state).__name__} instead of tensors by name")
    return state


def _refuse_compressed(path: Path) -> None:
    """torch stores its records as they are; a compressed one may be a bomb."""
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{record.filename} is compressed")
            if record.filename.endswith(".pkl") and record.file_size > _MAX_PICKLE:
                raise ValueError(f"{record.filename} has {record.file_size} bytes")


@contextmanager
def _memory_limit(path: Path) -> Iterator[None]:
    """Keep the unpickler from allocating without end: even weights_only admits bytearray(10**12).

    Linux counts a private mapping of the file, which torch makes, as data too. Other systems have no such limit.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = path.stat().st_size + _data_bytes() + _HEADROOM
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_bytes() -> int:
    """What this process has mapped as data already (mappings of other shards among it)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0


def _bad_weights(path: Path, found: str) -> SqloraError:
    return SqloraError(
        path,
        found=found,
        expected=f"a torch state dict with exactly the tensors that {CONFIG_FILE} beside it implies",
        next_step="Check that model.source is a Mistral-format model whose files belong together, and fetch it again.",
    )
