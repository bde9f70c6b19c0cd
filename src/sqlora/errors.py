"""The one exception a user is meant to see."""

from __future__ import annotations


class SqloraError(Exception):
    """A failure that its user can act on; shown as one paragraph, never as a traceback.

    Args:
        where: the file (with its line, where there is one), command or URL that is at fault.
        found: what was there.
        expected: what should have been there.
        next_step: what to do now, as an imperative sentence.
    """

    def __init__(self, where: object, *, found: str, expected: str, next_step: str) -> None:
        super().__init__(where, found, expected, next_step)
        self.where = str(where)
        self.found = found
        self.expected = expected
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.where}: found {self.found}; expected {self.expected}. {self.next_step}"
