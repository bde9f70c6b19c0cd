"""Writes SQL for many questions, and answers them in the order in which they were asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from sqlora.mlx import mx, nn

from llguidance import LLTokenizer

from sqlora.distributed.group import ALONE, Group
from sqlora.generate.answer import Answer, Job
from sqlora.generate.choose import Counts
from sqlora.generate.constraint import Constraint
from sqlora.generate.engine import CPU_SHAPES, GPU_SHAPES, Engine, Shapes
from sqlora.generate.forward import Forward, make_forward
from sqlora.generate.greedy import Greedy
from sqlora.generate.guided import Guided
from sqlora.generate.saved import Completion, Saved
from sqlora.generate.vocabulary import make_vocabulary
from sqlora.params.generate import GenerateParams
from sqlora.progress import progress
from sqlora.sql.execute import Runner, execute, open_database
from sqlora.sql.parse import parse_sql
from sqlora.tokenizer import Tokenizer
from sqlora.wikisql.form import AGGREGATES, Schema

# A block is computed as a whole, by one rank and from its beginning, so that the answers are the same bits however many
# ranks there are and wherever a run was killed. It ends with batches that are not full, so there are to be few: of at
# most _BLOCK batches each. Where one does not do they become a multiple of _SHARED, so that two and four ranks get as
# many each; so many are made of few questions, too, as far as each has a batch and a half.
_BLOCK, _SHARED = 8, 4


class Question(Schema, Protocol):
    """A question about a table."""

    @property
    def question(self) -> str: ...
    @property
    def prompt(self) -> str: ...


def generate(
    model: nn.Module | Forward,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    params: GenerateParams,
    *,
    label: str | None = "generate",
    database: Path | None = None,
    keep: Path | None = None,
    group: Group = ALONE,
    teacher: Sequence[Sequence[int]] | None = None,
    counts: Counts | None = None,
) -> list[Completion]:
    """Complete every question's prompt until EOS or `params.max_tokens`.

    Under a constraint an answer that reaches max_tokens is cut back to the longest complete query that it begins with.

    Args:
        model: mlx-lm's; or what `make_forward` made of it, which several calls had better share.
        label: of the progress bar; None for none.
        database: of the tables, for execution-guided decoding.
        keep: a folder, of this run only, for answers that survive a kill; it is gone when the run is through.
        group: the ranks that share the questions; each gets every answer.
        teacher: for measurements: the tokens that each question's answer is to have, whatever the model chooses.
        counts: for measurements: filled with what decoding took.

    Returns:
        In the order of the questions.
    """
    prompts = [tokenizer.encode_prompt(question.prompt) for question in questions]
    # Prompts of like length are read together with little padding. The longest first: their answers tend to be the
    # longest too, and what begins last had better be short (6 to 15% fewer steps).
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    number = blocks_of(len(order), params)
    mine = [(block, order[block::number]) for block in range(group.rank, number, group.size)]
    counts, saved, answers = counts or Counts(), Saved(keep), dict[int, Completion]()
    forward = make_forward(model) if isinstance(model, nn.Module) else model
    vocabulary = make_vocabulary(tokenizer, forward.vocabulary) if params.constrain != "none" else None
    with ExitStack() as stack:
        count = sum(len(indices) for _, indices in mine)
        bar = stack.enter_context(progress(label, total=count, unit="question")) if label else None
        workers = stack.enter_context(ThreadPoolExecutor(max(1, min(4, (os.cpu_count() or 1) // 4))))
        guided = database is not None and (params.execution_guided or 1) > 1
        runner = stack.enter_context(open_database(database)) if database and guided else None
        for block, indices in mine:
            done = saved.read(block, indices)
            if done is None:
                done = {}
                jobs = [
                    Job(index, prompts[index], _constrain(vocabulary, questions[index], params, workers))
                    for index in indices
                ]
                decoder = _decoder(forward, tokenizer, questions, len(jobs), params, counts, runner, teacher)
                for answer in decoder.run(jobs):
                    done[answer.job.index] = _completed(answer, tokenizer)
                    if bar is not None:
                        bar.update()
                saved.write(block, done)
            elif bar is not None:
                bar.update(len(done))
            answers |= done
    rows: list[Any] = [(index, one.completion, one.stopped, one.tokens, one.closed) for index, one in answers.items()]
    every = {index: Completion(*record) for part in group.gather(rows) for index, *record in part}
    saved.drop()
    return [every[index] for index in range(len(prompts))]


def blocks_of(count: int, params: GenerateParams) -> int:
    """Into how many blocks so many questions are divided, each of which has some of every length."""
    together = max(1, params.batch_size // (params.execution_guided or 1))
    number = -(-count // (_BLOCK * together))
    if number > 1:
        number = -(-number // _SHARED) * _SHARED
    return max(number, min(_SHARED, 2 * count // (3 * together)))


def shapes() -> Shapes:
    """Those that fit the device."""
    return GPU_SHAPES if mx.default_device() == mx.Device(mx.gpu) else CPU_SHAPES


def _constrain(
    vocabulary: LLTokenizer | None, question: Question, params: GenerateParams, workers: Executor
) -> Callable[[], Constraint] | None:
    if vocabulary is None:
        return None
    text = question.question if params.constrain == "schema+question" else None
    return lambda: Constraint(vocabulary, question, text, workers)


def _decoder(
    forward: Forward,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    jobs: int,
    params: GenerateParams,
    counts: Counts,
    runner: Runner | None,
    teacher: Sequence[Sequence[int]] | None,
) -> Greedy | Guided:
    """What decodes a block, with an engine of its own: a cache that is longer than it need be rounds in another way."""
    candidates = params.execution_guided or 1 if runner else 1
    rows = min(max(params.batch_size, candidates), jobs * candidates)
    engine = Engine(forward, rows, shapes())
    if runner is None or candidates == 1:
        return Greedy(engine, eos=tokenizer.eos, limit=params.max_tokens, counts=counts, teacher=teacher)

    def passes(answer: Answer) -> bool:
        return returns_something(tokenizer.decode(answer.tokens), questions[answer.job.index], runner)

    return Guided(
        engine, eos=tokenizer.eos, limit=params.max_tokens, counts=counts, candidates=candidates, passes=passes
    )


def returns_something(sql: str, table: Schema, runner: Runner) -> bool:
    """Whether a query can be read, executes, and finds something: a value that is not NULL, or a count above zero."""
    form = parse_sql(sql, table.id, table.header, table.types).form
    if form is None:
        return False
    execution = execute(form, table, runner)
    nothing = (None, 0) if AGGREGATES[form.agg] == "COUNT" else (None,)
    return execution.failure is None and any(value not in nothing for value in execution.rows)


def _completed(answer: Answer, tokenizer: Tokenizer) -> Completion:
    tokens = answer.query()
    return Completion(tokenizer.decode(tokens), answer.stopped, len(tokens), answer.closed)
