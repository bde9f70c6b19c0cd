"""Gathers what the page shows of two revisions: their results as they recorded them, their predictions scored anew."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlora.params.reader import PARAMS_FILE
from sqlora.report.results import LossPoint, Training, read_loss, read_training
from sqlora.score.revision_files import WORKSPACE, named_after, read_sections, revision_files
from sqlora.score.revisions import Comparison, compare_revisions

TRAINING, LOSS = "results/training.json", "results/loss.csv"


@dataclass(frozen=True, slots=True)
class Side:
    """One revision; about: its commit and subject; params: section.key -> value, as its params.yaml has them."""

    revision: str
    about: str
    params: Mapping[str, Any]
    training: Training
    loss: Sequence[LossPoint]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two revisions, and the adapters' answers to the questions that both have."""

    first: Side
    second: Side
    comparison: Comparison


def read_pair(root: Path, first: str, second: str) -> Pair:
    """Read two revisions of the repository `root`.

    Raises:
        SqloraError: for a revision that is none or has no results, and for what `compare_revisions` raises.
    """
    before, after = _read(root, first), _read(root, second)
    return Pair(before, after, compare_revisions(root, first, second, system="adapter"))


def different_params(pair: Pair) -> list[tuple[str, Any, Any]]:
    """(section.key, value in the first, value in the second); a key that a revision lacks has the value `absent`."""
    first, second = pair.first.params, pair.second.params
    keys = [*first, *(key for key in second if key not in first)]
    values = ((key, first.get(key, ABSENT), second.get(key, ABSENT)) for key in keys)
    return [(key, before, after) for key, before, after in values if before != after]


ABSENT = "absent"


def _read(root: Path, revision: str) -> Side:
    with revision_files(root, revision, (TRAINING, LOSS, str(PARAMS_FILE))) as folder, named_after(revision, folder):
        sections = read_sections(folder / PARAMS_FILE)
        params = {
            f"{name}.{key}": value
            for name, section in sections.items()
            if isinstance(section, dict)
            for key, value in section.items()
        }
        training, loss = read_training(folder / TRAINING), read_loss(folder / LOSS)
    return Side(revision, _about(root, revision), params, training, loss)


def _about(root: Path, revision: str) -> str:
    """The commit's short hash and subject; empty for what git alone does not know, such as an experiment's name."""
    if revision == WORKSPACE:
        return "as the files are now"
    command = ["git", "-C", str(root), "log", "-1", "--format=%h %s", "--end-of-options", revision, "--"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
