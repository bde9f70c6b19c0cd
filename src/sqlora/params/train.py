"""The `train` section: how the adapter is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sqlora.params.reader import Range


@dataclass(frozen=True)
class TrainParams:
    """batch_size: examples a step; iterations: steps; learning_rate: of Adam, constant.

    report_every, validate_every: in iterations; the last iteration always reports and validates.
    seed: of the adapter's initial values, the order of examples and dropout.
    """

    batch_size: Annotated[int, Range(least=1)]
    iterations: Annotated[int, Range(least=1)]
    learning_rate: Annotated[float, Range(above=0, most=1)]
    report_every: Annotated[int, Range(least=1)]
    validate_every: Annotated[int, Range(least=1)]
    seed: Annotated[int, Range(least=0, most=2**32 - 1)]
