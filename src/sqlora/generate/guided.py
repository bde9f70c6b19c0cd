"""Execution-guided decoding: of a beam's answers the likeliest one that executes and returns something.

Wang, Tatwawadi, Brockschmidt, Huang, Mao, Polozov and Singh, "Robust Text-to-SQL Generation with Execution-Guided
Decoding" (2018), with whole answers executed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from sqlora.mlx import mx

import numpy as np

from sqlora.generate.answer import Answer, Job
from sqlora.generate.choose import Choices, Counts, Masks, likeliest_few, not_finite
from sqlora.generate.engine import Engine


@dataclass
class Beam:
    """A question's candidates. Its first row is `row`; live: row -> candidate; choices: row -> how it may go on.

    tried: candidates that are written and did not pass; written: those that are still to be tried.
    """

    row: int
    live: dict[int, Answer]
    choices: dict[int, Choices] = field(default_factory=dict)
    written: list[Answer] = field(default_factory=list)
    tried: list[Answer] = field(default_factory=list)


class Guided:
    """Decoding of one block of jobs with `candidates` rows of the engine for each.

    Args:
        limit: longest answer, in tokens.
        passes: whether a written answer executes and returns something.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        eos: int,
        limit: int,
        counts: Counts,
        candidates: int,
        passes: Callable[[Answer], bool],
    ) -> None:
        self._engine, self._eos, self._limit, self._counts = engine, eos, limit, counts
        self._candidates, self._passes = candidates, passes
        self._masks = Masks(engine.vocabulary, counts)
        self._waiting: deque[Job] = deque()
        self._beams: list[Beam] = []
        self._free = deque(range(0, engine.rows - candidates + 1, candidates))

    def run(self, jobs: Iterable[Job]) -> Iterator[Answer]:
        """Yield the answers as they are settled."""
        self._waiting.extend(jobs)
        enough = max(1, len(self._free) // 4)
        while self._waiting or self._beams:
            started = time.perf_counter()
            if self._waiting and (len(self._free) >= min(enough, len(self._waiting)) or not self._beams):
                yield from self._enter()
                self._counts.prompts += time.perf_counter() - started
            else:
                self._step()
                yield from self._settle()
                self._counts.decoding += time.perf_counter() - started

    def _enter(self) -> Iterator[Answer]:
        beams: list[Beam] = []
        prompts: dict[int, list[int]] = {}
        answers = [Answer(job, job.constrain() if job.constrain else None) for job in self._take()]
        for answer in answers:
            if answer.constraint is not None:
                answer.constraint.start()
                self._counts.forced += answer.force(self._limit)
                answer.pending = []
            if answer.done:
                yield answer
                continue
            row = self._free.popleft()
            beams.append(Beam(row, {row: answer}))
            prompts[row] = [*answer.job.prompt, *answer.tokens]
        if prompts:
            ready = dict(enumerate(beam.live[beam.row] for beam in beams))
            self._begin(ready)
            self._look(self._engine.read_prompts(prompts), ready, beams, list(prompts))
            self._beams += beams
            yield from self._settle()

    def _take(self) -> list[Job]:
        jobs: list[Job] = []
        while self._waiting and len(jobs) < len(self._free):
            longest = max(len(job.prompt) for job in [*jobs, self._waiting[0]])
            if jobs and longest * (len(jobs) + 1) > self._engine.shapes.prompt_tokens:
                break
            jobs.append(self._waiting.popleft())
        return jobs

    def _step(self) -> None:
        widest = self._engine.widest
        pending = {row: answer for beam in self._beams for row, answer in beam.live.items() if answer.pending}
        ready = {row: answer for row, answer in pending.items() if len(answer.pending) <= widest}
        self._begin(ready)
        logits = self._engine.advance({row: answer.pending[:widest] for row, answer in pending.items()})
        for answer in pending.values():
            answer.pending = answer.pending[widest:]
        self._look(logits, ready, self._beams, None)
        self._counts.steps += 1

    def _begin(self, answers: Mapping[int, Answer]) -> None:
        self._masks.begin({row: answer.constraint for row, answer in answers.items()})

    def _look(self, logits: mx.array, ready: Mapping[int, Answer], beams: list[Beam], rows: list[int] | None) -> None:
        """Note how candidates may go on, and let those beams go on whose candidates are all at a choice.

        Args:
            ready: row of the logits -> candidate; rows: the rows of the engine that these are, if not the same.
        """
        few = likeliest_few(self._masks.allowed(logits), self._candidates, self._counts)
        started = time.perf_counter()
        noted = {rows[place] if rows else place: few[place] for place in ready}
        self._counts.decisions += len(noted)
        sources = np.arange(self._engine.rows, dtype=np.int32)
        for beam in beams:
            beam.choices |= {row: noted[row] for row in beam.live if row in noted}
            if beam.choices.keys() == beam.live.keys():
                self._expand(beam, sources)
        self._counts.matching += time.perf_counter() - started
        self._engine.reorder(sources)

    def _expand(self, beam: Beam, sources: np.ndarray[tuple[int], np.dtype[np.int32]]) -> None:
        """Replace the candidates by their likeliest continuations; `sources` learns which rows these continue."""
        ways = [
            (answer.score + score, row, token)
            for row, answer in beam.live.items()
            for token, score in beam.choices[row]
            if score > -np.inf
        ]
        if not ways:
            raise not_finite("no token with a probability")
        ways.sort(key=lambda way: (-way[0], way[1], way[2]))
        parents, beam.live, beam.choices = beam.live, {}, {}
        ways = ways[: self._candidates]
        staying = {row for _, row, _ in ways}
        free = [row for row in range(beam.row, beam.row + self._candidates) if row not in staying]
        copies = [(parents[row].copy(), score, row, token) for score, row, token in ways]
        for answer, score, parent, token in copies:
            answer.score = score
            answer.accept(token, self._eos, self._limit)
            self._counts.forced += answer.force(self._limit)
            if answer.done:
                beam.written.append(answer)
                continue
            # One continuation stays in its row, the others get copies of it.
            row = parent if parent not in beam.live else free.pop()
            sources[row] = parent
            beam.live[row] = answer

    def _settle(self) -> Iterator[Answer]:
        for beam in list(self._beams):
            answer = self._settled(beam)
            if answer is not None:
                for row in range(beam.row, beam.row + self._candidates):
                    self._engine.release(row)
                self._beams.remove(beam)
                self._free.append(beam.row)
                yield answer

    def _settled(self, beam: Beam) -> Answer | None:
        """The beam's answer; None while a candidate may still become a likelier one than those that are written."""
        beam.written.sort(key=lambda answer: -answer.score)
        likeliest = max((answer.score for answer in beam.live.values()), default=-np.inf)
        while beam.written and beam.written[0].score >= likeliest:
            answer = beam.written.pop(0)
            if answer.stopped and self._passes(answer):
                return answer
            beam.tried.append(answer)
            if len(beam.tried) >= self._candidates:
                break
        if beam.live and len(beam.tried) < self._candidates:
            return None
        # None of them returns anything: the likeliest one. What the limit ended was not executed: cut back to a query
        # it has lost a condition, and would find more than those that are whole.
        return min(beam.tried, key=lambda answer: (not answer.stopped, not answer.closed, -answer.score))
