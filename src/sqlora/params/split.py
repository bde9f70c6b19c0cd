"""The `split` section: how many examples, drawn how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sqlora.params.reader import OneOf, Range


@dataclass(frozen=True)
class SplitParams:
    """Sizes are numbers of questions, drawn from the source's train, dev and test parts; null is all of a part.

    sampling: `tables` draws at random, spread over tables; `first` takes the first rows, as the reference does.
    drop_degenerate: whether questions whose gold query returns nothing are kept out of the test split.
    seed: of the draw; a smaller split is contained in a larger one of the same seed.
    """

    train_size: Annotated[int, Range(least=1)] | None
    valid_size: Annotated[int, Range(least=1)] | None
    test_size: Annotated[int, Range(least=1)] | None
    sampling: Annotated[str, OneOf(("tables", "first"))]
    drop_degenerate: bool
    seed: Annotated[int, Range(least=0)]
