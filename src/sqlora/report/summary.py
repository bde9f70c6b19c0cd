"""What `make demo` ends with: the scores and three example questions, for a terminal."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from sqlora.errors import SqloraError
from sqlora.params.reader import PARAMS_FILE, read_params
from sqlora.params.score import ScoreParams
from sqlora.report.cases import Case, make_cases, spread, visible
from sqlora.report.results import MEASURES, SYSTEMS, Scores, read_scores
from sqlora.score.judge import judge
from sqlora.score.predictions import Prediction, read_predictions
from sqlora.text import Example, read_examples

WIDTH = 100  # columns

_EXAMPLES = 3
_SCORES = Path("results/details.json")
_TEST = Path("artifacts/dataset/test.jsonl")
_TABLES = Path("artifacts/dataset/tables.db")
_PREDICTIONS = Path("artifacts/predictions")


def print_summary(root: Path) -> None:
    """Print what `summarise_run` returns."""
    print_text(summarise_run(root))


def print_text(text: str) -> None:
    """Print with a `?` for each character that the terminal's encoding lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding))


def summarise_run(root: Path) -> str:
    """Lines of at most WIDTH characters about the run in the repository `root`.

    Raises:
        SqloraError: if the run has not finished, or its results do not fit together.
    """
    predictions_files = {system: root / _PREDICTIONS / f"{system}.jsonl" for system in SYSTEMS}
    for path in (root / _SCORES, root / _TEST, root / _TABLES, *predictions_files.values()):
        if not path.is_file():
            raise SqloraError(
                path,
                found="no such file",
                expected="the results of a finished run",
                next_step="Run dvc repro at the top of the repository.",
            )
    examples = read_examples(root / _TEST)
    scores = read_scores(root / _SCORES, len(examples))
    predictions = {system: read_predictions(path, len(examples)) for system, path in predictions_files.items()}
    execute_as = read_params(root / PARAMS_FILE, {"score": ScoreParams})["score"].execute
    chosen = choose(examples, predictions["adapter"], root / _TABLES, execute_as)
    cases = make_cases(chosen, examples, predictions, root / _TABLES, execute_as=execute_as)
    return "\n".join([*_table(scores), *(line for case in cases for line in ["", *_case(case)])])


def choose(examples: Sequence[Example], adapter: Sequence[Prediction], db: Path, execute_as: str) -> list[int]:
    """Three evenly spaced questions; if the adapter got none of them right, the first one that it did takes a place."""
    chosen = spread(len(examples), _EXAMPLES)
    verdicts = judge(examples, adapter, db, execute_as=execute_as)
    right = [index for index, verdict in enumerate(verdicts) if verdict.execution]
    if right and not set(right) & set(chosen):
        chosen[0] = right[0]
    return sorted(chosen)


def wrap(label: str, text: str, most: int = 5) -> list[str]:
    """The text behind its label in at most `most` lines, of which the last one says when something is left out."""
    room = WIDTH - len(label)
    lines = textwrap.wrap(visible(text), room, break_on_hyphens=False) or [""]
    if len(lines) > most:
        # One line of babble is filled to its end, wherever that cuts a word.
        last = visible(text) if most == 1 else " ".join(lines[most - 1 :])
        lines = [*lines[: most - 1], last[: room - 1].rstrip() + "…"]
    return [(" " * len(label) if number else label) + line for number, line in enumerate(lines)]


def _table(scores: Scores) -> list[str]:
    lines = [f"{f'{scores.examples:,} test questions':<24}" + "".join(f"{system:>20}" for system in SYSTEMS)]
    lines.append("-" * len(lines[0]))
    for measure, label in MEASURES.items():
        cells = (f"{scores.percent(system, measure)} ({scores.count(system, measure)})" for system in SYSTEMS)
        lines.append(f"{label:<24}" + "".join(f"{cell:>20}" for cell in cells))
    return lines


def _case(case: Case) -> list[str]:
    lines = wrap(f"Question {case.index + 1}: ", case.example.question.strip())
    for name, system in (("before", "base"), ("after", "adapter")):
        answer = case.answers[system]
        lines += wrap(f"  {name:<8}{answer.mark:<16}", answer.sql or "(nothing)", most=1 if system == "base" else 3)
    return lines + wrap(f"  {'gold':<24}", case.gold)
