"""Answers of a run that is not through yet, so that one that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from sqlora.publish import publish_file

ROOT = Path(".sqlora/generate")
KEPT = 3  # unfinished runs
_LIBRARIES = ("mlx", "mlx-lm", "llguidance", "numpy")


@dataclass(frozen=True)
class Completion:
    """completion: the text without EOS; stopped: whether EOS ended it, rather than max_tokens; tokens: of the
    completion, without EOS; closed: whether max_tokens ended it and the completion is a complete query all the same.
    """

    completion: str
    stopped: bool
    tokens: int
    closed: bool


class Saved:
    """A folder with one file for each block of questions that is through.

    A block is decoded from its first question on or not at all: rounding depends on what is computed together, so half
    a block could not be continued to the same bytes.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def read(self, block: int, indices: Sequence[int]) -> dict[int, Completion] | None:
        """A block's answers by index in the split; None if it is not there or damaged."""
        if self._folder is None:
            return None
        try:
            records = json.loads(self._path(block).read_text(encoding="utf-8"))
            answers = {int(index): Completion(**record) for index, record in records.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return None
        return answers if answers.keys() == set(indices) else None

    def write(self, block: int, answers: Mapping[int, Completion]) -> None:
        """Keep a block."""
        if self._folder is not None:
            with publish_file(self._path(block)) as file:
                records = {str(index): asdict(answer) for index, answer in answers.items()}
                file.write_text(json.dumps(records), encoding="utf-8")

    def drop(self) -> None:
        """The run is published."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            with suppress(OSError):  # other ranks may not be through
                self._folder.parent.rmdir()

    def _path(self, block: int) -> Path:
        assert self._folder is not None
        return self._folder / f"block-{block:05d}.json"


def drop_older(run: Path) -> None:
    """Delete the answers of all unfinished runs but the latest few, and `run`, a folder of ROOT, which does not count:
    another rank may have made it already, or not.
    """
    if ROOT.is_dir():
        # A block changes the time of its rank's folder only.
        latest = {
            path: max(part.stat().st_mtime for part in [path, *path.iterdir()])
            for path in ROOT.iterdir()
            if path.is_dir() and path != run
        }
        for path in sorted(latest, key=lambda path: latest[path])[:-KEPT]:
            shutil.rmtree(path, ignore_errors=True)


def fingerprint(inputs: Mapping[str, Any], files: Sequence[Path]) -> str:
    """A name for a run: equal only if the inputs, the files' contents, all of sqlora's code and the libraries are."""
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode("utf-8"))
    for path in [*files, *sorted(Path(__file__).parents[1].rglob("*.py"))]:
        with open(path, "rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    for name in _LIBRARIES:
        digest.update(f"{name} {metadata.version(name)}".encode())
    return digest.hexdigest()[:16]
