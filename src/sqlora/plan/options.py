"""The current settings and their alternatives, each with what it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from sqlora.params.convert import ConvertParams
from sqlora.params.lora import LoraParams
from sqlora.params.train import TrainParams
from sqlora.plan.cost import Speed, disk, seconds
from sqlora.plan.machine import Machine
from sqlora.plan.memory import adapter_size, packs, predict
from sqlora.plan.prediction import Prediction
from sqlora.plan.shape import Shape
from sqlora.plan.work import Size, work_of

BATCHES = (4, 2, 1)
LAYERS = (16, 8, 4)


@dataclass(frozen=True)
class Option:
    """A choice of settings; fits: into memory; stores: whether its states have room; seconds is None where nothing was
    measured.
    """

    lora: LoraParams
    train: TrainParams
    quantize: int | None
    current: bool
    prediction: Prediction
    fits: bool
    stores: bool
    disk: dict[str, int]
    seconds: float | None
    trainable: int


def options(
    shape: Shape,
    convert: ConvertParams,
    lora: LoraParams,
    train: TrainParams,
    sizes: tuple[Sequence[Size], Sequence[Size]],
    machine: Machine,
    speed: Speed | None,
    outside: int,
    room: float,
) -> list[Option]:
    """Every batch size with every number of layers, quantized or not, with checkpointing or not.

    Args:
        outside: bytes of a process beside MLX's arrays; room: bytes for the states of frozen layers.
    """
    result = []
    compiled, longest = machine.device != "cpu", max(size.length for part in sizes for size in part)
    plain = shape.converted(convert.dtype, None, convert.group_size)
    packed = packs(plain, lora, machine.device, longest)
    for batch in _with(train.batch_size, BATCHES):
        work = None
        for layers in _with(lora.layers, [min(count, shape.layers) for count in LAYERS]):
            for quantize in dict.fromkeys((None, 4, convert.quantize)):
                for checkpointing in (False, True):
                    other = dataclasses.replace(lora, layers=layers)
                    changed = dataclasses.replace(train, batch_size=batch, gradient_checkpointing=checkpointing)
                    ranks = train.workers
                    work = work or work_of(*sizes, changed, ranks=ranks, compiled=compiled, packed=packed)
                    model = shape.converted(convert.dtype, quantize, convert.group_size)
                    found = predict(model, other, changed, work, device=machine.device, outside=outside)
                    written = disk(model, other, changed, work)
                    result.append(
                        Option(
                            lora=other,
                            train=changed,
                            quantize=quantize,
                            current=(other, changed, quantize) == (lora, train, convert.quantize),
                            prediction=found,
                            fits=found.peak <= machine.memory,
                            stores=written["states"] <= room,
                            disk=written,
                            seconds=seconds(model, other, changed, work, speed) if speed else None,
                            trainable=adapter_size(model, other),
                        )
                    )
    return result


def _with(current: int, others: Sequence[int]) -> list[int]:
    return sorted({current, *others}, reverse=True)
