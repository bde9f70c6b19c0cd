"""The `generate` section: how SQL is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sqlora.params.reader import OneOf, Range


@dataclass(frozen=True)
class GenerateParams:
    """batch_size: candidates decoded at once; max_tokens: longest answer, in tokens.

    constrain: what an answer may be: anything, SQL over the question's table, or such with values from the question.
    execution_guided: how many candidates; the likeliest that executes and returns something is the answer. None is 1.
    workers, hostfile, backend: who shares the questions, as in the section `train`.
    """

    batch_size: Annotated[int, Range(least=1)]
    max_tokens: Annotated[int, Range(least=1)]
    constrain: Annotated[str, OneOf(("none", "schema", "schema+question"))]
    execution_guided: Annotated[int, Range(least=1, most=16)] | None
    workers: Annotated[int, Range(least=1)]
    hostfile: str | None
    backend: Annotated[str, OneOf(("auto", "ring", "mpi", "nccl"))]
