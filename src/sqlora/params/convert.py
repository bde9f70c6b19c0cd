"""The `convert` section: how the base model is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sqlora.params.reader import OneOf


@dataclass(frozen=True)
class ConvertParams:
    """How weights are written.

    dtype: float32 on a CPU, bfloat16 or float16 on a GPU; where they are quantized, the dtype of what is computed.
    quantize: bits of a weight, or null for none; group_size: how many weights of a row share a scale then.
    """

    dtype: Annotated[str, OneOf(("float32", "bfloat16", "float16"))]
    quantize: Annotated[int, OneOf((4, 8))] | None
    group_size: Annotated[int, OneOf((32, 64, 128))]
