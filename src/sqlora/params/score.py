"""The `score` section: how the model's SQL is executed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sqlora.params.reader import OneOf


@dataclass(frozen=True)
class ScoreParams:
    """execute: `form` executes what the parser reads, with quoted names and bound values; `text` also executes the text
    of an answer that the parser cannot read, as SQL, in the sandbox.
    """

    execute: Annotated[str, OneOf(("form", "text"))]
