"""Decodes many answers at once, the likeliest token at each step; rows that finish make room for the next."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

from sqlora.mlx import mx

from sqlora.generate.answer import Answer, Job
from sqlora.generate.choose import NO_TOKEN, Counts, Masks, likeliest, not_finite
from sqlora.generate.engine import Engine


class Greedy:
    """Decoding of one block of jobs. What is computed together depends on the jobs and their answers only.

    Args:
        limit: longest answer, in tokens.
        teacher: for measurements: the answer that each job (by index) is to give, whatever the model chooses.
    """

    def __init__(
        self, engine: Engine, *, eos: int, limit: int, counts: Counts, teacher: Sequence[Sequence[int]] | None = None
    ) -> None:
        self._engine, self._eos, self._limit, self._counts, self._teacher = engine, eos, limit, counts, teacher
        self._waiting: deque[Job] = deque()
        self._started: deque[Answer] = deque()  # their grammars are being built
        self._active: dict[int, Answer] = {}
        self._free = deque(range(engine.rows))
        self._masks = Masks(engine.vocabulary, counts)

    def run(self, jobs: Iterable[Job]) -> Iterator[Answer]:
        """Yield the answers as they finish."""
        self._waiting.extend(jobs)
        # Prompts are read a few at a time, which costs less than one by one.
        enough = max(1, self._engine.rows // 4)
        while True:
            self._start()
            enters = self._started and (len(self._free) >= min(enough, len(self._started)) or not self._active)
            if not enters and not self._active:
                return
            started = time.perf_counter()
            if enters:
                yield from self._enter()
                self._counts.prompts += time.perf_counter() - started
            else:
                self._step()
                self._counts.decoding += time.perf_counter() - started
            yield from self._leave()

    def _start(self) -> None:
        while self._waiting and len(self._started) < self._engine.rows:
            job = self._waiting.popleft()
            self._started.append(Answer(job, job.constrain() if job.constrain else None))

    def _enter(self) -> Iterator[Answer]:
        """Read some prompts, with what the grammar forces behind them, and choose their first tokens."""
        entering: dict[int, Answer] = {}
        prompts: dict[int, list[int]] = {}
        longest = 0
        while self._started and self._free:
            answer = self._started[0]
            if answer.constraint is not None and not answer.tokens:
                started = time.perf_counter()
                answer.constraint.start()
                self._counts.grammars += time.perf_counter() - started
                self._counts.forced += answer.force(self._limit)
                answer.pending = []
            longest = max(longest, len(answer.job.prompt) + len(answer.tokens))
            if prompts and longest * (len(prompts) + 1) > self._engine.shapes.prompt_tokens:
                break
            self._started.popleft()
            if answer.done:
                yield answer
                continue
            row = self._free.popleft()
            entering[row], prompts[row] = answer, [*answer.job.prompt, *answer.tokens]
        if prompts:
            answers = dict(enumerate(entering.values()))
            self._begin(answers)
            self._choose(self._engine.read_prompts(prompts), answers)
            self._active |= entering

    def _step(self) -> None:
        widest = self._engine.widest
        ready = {row: answer for row, answer in self._active.items() if len(answer.pending) <= widest}
        self._begin(ready)
        logits = self._engine.advance({row: answer.pending[:widest] for row, answer in self._active.items()})
        for answer in self._active.values():
            answer.pending = answer.pending[widest:]
        self._choose(logits, ready)
        self._counts.steps += 1

    def _begin(self, answers: Mapping[int, Answer]) -> None:
        """Make the masks of rows that are at a choice, while the step is prepared and computed."""
        self._masks.begin({row: answer.constraint for row, answer in answers.items()})

    def _choose(self, logits: mx.array, answers: Mapping[int, Answer]) -> None:
        chosen = likeliest(self._masks.allowed(logits), self._counts)
        started = time.perf_counter()
        for row, answer in answers.items():
            token = chosen[row]
            if token == NO_TOKEN:
                raise not_finite("no token that is the likeliest")
            if self._teacher is not None:
                text = self._teacher[answer.job.index]
                token = text[len(answer.tokens)] if len(answer.tokens) < len(text) else self._eos
            answer.accept(token, self._eos, self._limit)
            if answer.constraint is not None:
                self._counts.forced += answer.force(self._limit)
        self._counts.decisions += len(answers)
        self._counts.matching += time.perf_counter() - started

    def _leave(self) -> Iterator[Answer]:
        for row in [row for row, answer in self._active.items() if answer.done]:
            self._engine.release(row)
            self._free.append(row)
            yield self._active.pop(row)
