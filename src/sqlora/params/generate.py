"""The `generate` section: how SQL is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sqlora.params.reader import Range


@dataclass(frozen=True)
class GenerateParams:
    """batch_size: questions decoded at once; max_tokens: longest answer, in tokens. Decoding is greedy."""

    batch_size: Annotated[int, Range(least=1)]
    max_tokens: Annotated[int, Range(least=1)]
