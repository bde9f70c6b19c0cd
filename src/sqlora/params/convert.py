"""The `convert` section: how the base model is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sqlora.params.reader import OneOf


@dataclass(frozen=True)
class ConvertParams:
    """dtype: of the converted weights; float32 on a CPU, bfloat16 or float16 on a GPU."""

    dtype: Annotated[str, OneOf(("float32", "bfloat16", "float16"))]
