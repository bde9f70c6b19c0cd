"""The `split` section: how many examples, drawn how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sqlora.params.reader import OneOf, Range


@dataclass(frozen=True)
class SplitParams:
    """Sizes are numbers of questions, drawn from the source's train, dev and test parts.

    sampling: `tables` draws at random, spread over tables; `first` takes the first rows, as the reference does.
    seed: of the draw; a smaller split is contained in a larger one of the same seed.
    """

    train_size: Annotated[int, Range(least=1)]
    valid_size: Annotated[int, Range(least=1)]
    test_size: Annotated[int, Range(least=1)]
    sampling: Annotated[str, OneOf(("tables", "first"))]
    seed: Annotated[int, Range(least=0)]
