"""A question to be answered, and an answer while it is being written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from sqlora.generate.constraint import Constraint


@dataclass(frozen=True)
class Job:
    """index: in the split; prompt: its tokens; constrain: begins to build a constraint, or None for free decoding."""

    index: int
    prompt: Sequence[int]
    constrain: Callable[[], Constraint] | None = None


@dataclass
class Answer:
    """One way to answer a job.

    tokens: without EOS; pending: those of them that the cache lacks; stopped: whether EOS ended it, rather than the
    limit; score: the sum of the logarithms of its choices' probabilities, where candidates are compared.
    """

    job: Job
    constraint: Constraint | None
    tokens: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    stopped: bool = False
    done: bool = False
    score: float = 0.0

    def accept(self, token: int, eos: int, limit: int) -> None:
        """Append a chosen token."""
        if token == eos:
            self.stopped = self.done = True
            return
        self.tokens.append(token)
        self.pending.append(token)
        if self.constraint is not None:
            self.constraint.take(token)
        self.done = len(self.tokens) >= limit

    def force(self, limit: int) -> int:
        """Append the tokens that the grammar forces; returns their number. What nothing can follow is done."""
        if self.constraint is None or self.stopped:
            return 0
        tokens = self.constraint.forced(limit - len(self.tokens))
        self.tokens += tokens
        self.pending += tokens
        self.stopped = self.constraint.finished()
        self.done = self.stopped or len(self.tokens) >= limit
        return len(tokens)

    @property
    def closed(self) -> bool:
        """Whether the limit ended it behind a complete query, which is then what it answers."""
        return self.done and not self.stopped and self.constraint is not None and self.constraint.complete > 0

    def query(self) -> list[int]:
        """Its tokens; if it was closed, those of the longest complete query that it begins with."""
        if self.closed and self.constraint is not None:
            return self.tokens[: self.constraint.complete]
        return self.tokens

    def copy(self) -> Answer:
        """The same, to go on in another way."""
        constraint = self.constraint.copy() if self.constraint is not None else None
        return replace(self, constraint=constraint, tokens=[*self.tokens], pending=[*self.pending])
