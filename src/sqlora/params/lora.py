"""The `lora` section: the shape of the adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sqlora.params.reader import OneOf, Range


@dataclass(frozen=True)
class LoraParams:
    """adapter: the kind of the adapter's layers; layers: how many of the top layers are adapted.

    rank: of the two low-rank factors; scale: factor on their product; dropout: share of inputs zeroed in training.
    targets: which projections of those layers are adapted.
    """

    adapter: Annotated[str, OneOf(("lora", "dora"))]
    layers: Annotated[int, Range(least=1)]
    rank: Annotated[int, Range(least=1)]
    scale: Annotated[float, Range(above=0)]
    dropout: Annotated[float, Range(least=0, most=0.9)]
    targets: tuple[
        Annotated[str, OneOf(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))], ...
    ]
