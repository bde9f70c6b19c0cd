"""Holds an answer to its table's grammar, token by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer
from llguidance.numpy import fill_next_token_bitmask_par
from numpy.typing import NDArray

from sqlora.errors import SqloraError
from sqlora.generate.grammar import beginning, continuation
from sqlora.sql.parse import parse_sql
from sqlora.wikisql.form import Schema

Mask = NDArray[np.int32]
_AND = b" AND"


class Constraint:
    """One answer's place in its grammar.

    Grammars are built by `workers` while the model computes; llguidance leaves Python's lock meanwhile.

    Args:
        question: None where the question does not matter.

    Attributes:
        taken: how many tokens it was given.
        complete: how many of them, from the first on, are the longest complete query; 0 if none is.
    """

    def __init__(self, vocabulary: LLTokenizer, table: Schema, question: str | None, workers: Executor) -> None:
        self._vocabulary, self._table, self._question, self._workers = vocabulary, table, question, workers
        self._written = b""
        self.taken = self.complete = 0
        self._matcher: LLMatcher | None = None
        self._building: Future[LLMatcher] = workers.submit(self._build, lambda: beginning(table, question))

    def forced(self, limit: int) -> list[int]:
        """Take the tokens that must come now, at most `limit`: those into which training would have cut the text.

        There are none while the grammar is being built; the first of them is then chosen like any other.
        """
        if self._matcher is None:
            return []
        tokens: list[int] = self._matcher.compute_ff_tokens()[:limit]
        if tokens:
            # Where the answer may end, no token is forced: it is enough to look behind the last one.
            self._take(tokens)
        return tokens

    def start(self) -> None:
        """Wait for the grammar."""
        if self._matcher is None:
            self._matcher = self._building.result()

    def take(self, token: int) -> None:
        """Go one token on, which must be one of those that `fill` allows and not EOS."""
        self._take([token])

    def _take(self, tokens: list[int]) -> None:
        assert self._matcher
        if not self._matcher.consume_tokens(tokens):
            raise ValueError(f"tokens {tokens} are not in the grammar: {self._matcher.get_error()}")
        self.taken += len(tokens)
        self._written += self._vocabulary.decode_bytes(tokens)
        if self._written.endswith(_AND):
            self._follow_and()
        if self.accepts():
            self.complete = self.taken

    @property
    def matcher(self) -> LLMatcher:
        """llguidance's own; only once the grammar is there."""
        assert self._matcher
        return self._matcher

    def accepts(self) -> bool:
        """Whether the answer may end here."""
        return self._matcher is not None and self._matcher.is_accepting()

    def finished(self) -> bool:
        """Whether nothing but EOS can follow."""
        if self._matcher is None:
            return False
        if self._matcher.is_error():
            raise SqloraError(
                f"table {self._table.id}",
                found=f"an answer that its grammar does not follow ({self._matcher.get_error():.300})",
                expected="no such failure of llguidance",
                next_step="Set generate.constrain to none in params.yaml.",
            )
        return bool(self._matcher.is_stopped())

    def copy(self) -> Constraint:
        """Another one at the same place."""
        copied = object.__new__(Constraint)
        copied.__dict__ |= self.__dict__
        if self._matcher is not None:
            copied._matcher = self._matcher.deep_copy()
        return copied

    def _follow_and(self) -> None:
        """Change to the grammar behind an AND that ended a condition; in a name or a text, AND is just a word."""
        assert self._matcher
        if not self._matcher.is_accepting():
            return
        table = self._table
        text = self._written[: -len(_AND)].decode("utf-8", "replace")
        parsed = parse_sql(text, table.id, table.header, table.types)
        if parsed.form is None or not parsed.form.conds:
            return
        used = {table.header[column] for column, _, _ in parsed.form.conds}
        self._matcher = None
        self._building = self._workers.submit(self._build, lambda: continuation(table, self._question, used))

    def _build(self, grammar: Callable[[], str]) -> LLMatcher:
        matcher = LLMatcher(self._vocabulary, LLMatcher.grammar_from_lark(grammar()), log_level=0)
        if matcher.is_error():
            raise SqloraError(
                f"table {self._table.id}",
                found=f"a schema of which no grammar can be made ({matcher.get_error():.300})",
                expected="names that a grammar can hold",
                next_step="Set generate.constrain to none in params.yaml, or remove the table from the source.",
            )
        return matcher


def fill(constraints: Mapping[int, Constraint], masks: Mask, threads: LLExecutor) -> None:
    """Set the bits of the tokens that may come next, EOS among them, in masks[row] (vocabulary / 32 words).

    All rows at once, on several threads and without Python's lock.
    """
    matchers = []
    for row, constraint in constraints.items():
        constraint.start()
        matchers.append((constraint.matcher, row))
    fill_next_token_bitmask_par(threads, matchers, masks)
