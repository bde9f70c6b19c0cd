"""`python -m sqlora compare REV_A REV_B`: what a change fixed and broke, question by question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlora.errors import SqloraError
from sqlora.params.reader import PARAMS_FILE
from sqlora.score.judge import Verdict, judge
from sqlora.score.predictions import Prediction, read_predictions
from sqlora.score.revision_files import named_after, read_sections, revision_files
from sqlora.score.statistics import pair
from sqlora.score.summary import describe_pair, summarise
from sqlora.text import Example, read_examples

DATASET = "artifacts/dataset"
PREDICTIONS = "artifacts/predictions"


@dataclass(frozen=True)
class Run:
    """The test split of one revision, one system's predictions for it, and their verdicts."""

    revision: str
    examples: Sequence[Example]
    predictions: Sequence[Prediction]
    verdicts: Sequence[Verdict]

    def only(self, indices: Sequence[int]) -> Run:
        """The same run on some of its questions."""
        return Run(
            self.revision,
            [self.examples[index] for index in indices],
            [self.predictions[index] for index in indices],
            [self.verdicts[index] for index in indices],
        )

    def summary(self) -> dict[str, Any]:
        """What details.json would say of it."""
        return summarise(self.examples, self.predictions, self.verdicts)


@dataclass(frozen=True)
class Comparison:
    """Two runs on the questions that both have, in the same order; left_out: how many only one of them has."""

    first: Run
    second: Run
    left_out: int

    def to_json(self) -> dict[str, Any]:
        """Everything, for scripts."""
        runs = (self.first, self.second)
        return {
            "questions": len(self.first.examples),
            "left_out": self.left_out,
            "revisions": [{"revision": run.revision, **run.summary()} for run in runs],
            "execution": describe_pair(pair(*([v.execution for v in run.verdicts] for run in runs))),
            "logical_form": describe_pair(pair(*([v.logical_form for v in run.verdicts] for run in runs))),
            "broken": [self._change(index) for index in self.changed(fixed=False)],
            "fixed": [self._change(index) for index in self.changed(fixed=True)],
        }

    def changed(self, *, fixed: bool) -> list[int]:
        """Questions whose result only the second run (fixed), or only the first one, got right."""
        pairs = zip(self.first.verdicts, self.second.verdicts, strict=True)
        return [
            index
            for index, (before, after) in enumerate(pairs)
            if before.execution != after.execution and after.execution == fixed
        ]

    def _change(self, index: int) -> dict[str, str]:
        example = self.first.examples[index]
        return {
            "table_id": example.table_id,
            "question": example.question,
            "gold": example.completion.strip(),
            "first": self.first.predictions[index].completion.strip(),
            "second": self.second.predictions[index].completion.strip(),
        }


def compare_revisions(root: Path, first: str, second: str, *, system: str) -> Comparison:
    """Score two revisions' predictions anew, with the scorer of today, and pair them.

    Args:
        root: top of the repository.
        first, second: git revisions (branch, tag, commit, experiment), or `workspace`.
        system: `base` or `adapter`.

    Raises:
        SqloraError: for a revision that is none, predictions that are neither in DVC's cache nor in its remote, or two
            test splits without a common question.
    """
    runs = [_read(root, revision, system) for revision in (first, second)]
    places = [_places(run.examples) for run in runs]
    common = [key for key in places[0] if key in places[1]]
    if not common:
        raise SqloraError(
            f"{first} and {second}",
            found="two test splits without a common question",
            expected="the same data.source, and splits of one seed",
            next_step="Compare runs on the same test questions.",
        )
    left_out = len(places[0].keys() ^ places[1].keys())
    before, after = (run.only([place[key] for key in common]) for run, place in zip(runs, places, strict=True))
    return Comparison(before, after, left_out)


def _places(examples: Sequence[Example]) -> dict[tuple[str, str, str, int], int]:
    """Question -> index, in the order of the split; a question that stands twice is two."""
    seen: Counter[tuple[str, str, str]] = Counter()
    places = {}
    for index, example in enumerate(examples):
        key = (example.table_id, example.question, example.completion)
        seen[key] += 1
        places[(*key, seen[key])] = index
    return places


def _read(root: Path, revision: str, system: str) -> Run:
    with _files(root, revision, system) as (folder, execute_as), named_after(revision, folder):
        # An older revision may have rendered numbers differently; what it asked is all that counts.
        examples = read_examples(folder / DATASET / "test.jsonl", any_text=True)
        predictions = read_predictions(folder / PREDICTIONS / f"{system}.jsonl", len(examples))
        verdicts = judge(examples, predictions, folder / DATASET / "tables.db", execute_as=execute_as)
    return Run(revision, examples, predictions, verdicts)


@contextmanager
def _files(root: Path, revision: str, system: str) -> Iterator[tuple[Path, str]]:
    """A folder that holds the dataset and the predictions of a revision in their places, and its score.execute."""
    names = (f"{DATASET}/test.jsonl", f"{DATASET}/tables.db", f"{PREDICTIONS}/{system}.jsonl")
    with revision_files(root, revision, (*names, str(PARAMS_FILE))) as folder:
        yield folder, _execute_as(folder / PARAMS_FILE)


def _execute_as(params: Path) -> str:
    """score.execute of a revision, whose other parameters may be those of another version; older ones had none."""
    section = read_sections(params).get("score")
    return "text" if section == {"execute": "text"} else "form"
