"""What a training run will take, compared with what this machine has, before any work."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlora.mlx import mx

from sqlora.distributed.group import ALONE, Group
from sqlora.errors import SqloraError
from sqlora.params.lora import LoraParams
from sqlora.params.train import MOST_BATCHES, TrainParams
from sqlora.plan.machine import Machine, outside_memory, this_machine
from sqlora.plan.memory import packs, predict
from sqlora.plan.prediction import Prediction
from sqlora.plan.shape import Shape, shape_of
from sqlora.plan.work import Size, Work, sizes_of, work_of
from sqlora.tokenizer import Encoded


def expect(
    config: Mapping[str, Any],
    train: Sequence[Encoded],
    valid: Sequence[Encoded],
    lora: LoraParams,
    params: TrainParams,
    group: Group = ALONE,
) -> Prediction:
    """Predict the peak memory of each rank of a run, refuse one that cannot fit, and keep MLX within the prediction.

    Raises:
        SqloraError: naming settings that would fit, unless train.force is set.
    """
    machine, shape = this_machine(), shape_of(config)
    outside = outside_memory() if machine.device == "cpu" else 0
    sizes = sizes_of(train), sizes_of(valid)
    if machine.device == "cpu":  # whose memory the ranks of this machine share
        machine = dataclasses.replace(machine, memory=machine.memory // len(group.disk))
    longest = max(size.length for part in sizes for size in part)
    packed = all(group.each(packs(shape, lora, machine.device, longest)))
    work = work_of(*sizes, params, ranks=group.size, compiled=machine.device != "cpu", packed=packed)
    prediction = predict(shape, lora, params, work, device=machine.device, outside=outside)
    if not params.force and prediction.peak > machine.memory:
        raise _refusal(shape, lora, params, sizes, machine, prediction, group.size, packed=packed)
    # On Metal the limit is a little above the predicted peak; where that is more than there is, MLX waits earlier.
    fits = prediction.peak <= machine.memory
    mx.set_memory_limit(min(prediction.limit, machine.memory) if fits else prediction.limit)
    return prediction


def smaller(lora: LoraParams, params: TrainParams) -> Iterator[tuple[LoraParams, TrainParams]]:
    """Settings that need less memory, those that change least first."""
    smallest, half, rows = params, params.batch_size, params.gradient_accumulation * params.batch_size
    while half > 1:
        half //= 2
        # As many examples a step, in smaller batches: the run learns as much.
        parts = rows // half
        if parts * half == rows and parts <= MOST_BATCHES:
            smallest = dataclasses.replace(params, batch_size=half, gradient_accumulation=parts)
            yield lora, smallest
    if not params.gradient_checkpointing:
        yield lora, dataclasses.replace(smallest, gradient_checkpointing=True)
    layers = lora.layers
    while layers > 1:
        layers //= 2
        yield (
            dataclasses.replace(lora, layers=layers),
            dataclasses.replace(smallest, gradient_checkpointing=params.gradient_checkpointing),
        )


def _refusal(
    shape: Shape,
    lora: LoraParams,
    params: TrainParams,
    sizes: tuple[list[Size], list[Size]],
    machine: Machine,
    prediction: Prediction,
    ranks: int,
    *,
    packed: bool,
) -> SqloraError:
    fitting = None
    works: dict[tuple[int, int], Work] = {}
    for other, changed in smaller(lora, params):
        kind = changed.batch_size, changed.gradient_accumulation
        if kind not in works:
            compiled = machine.device != "cpu"
            works[kind] = work_of(*sizes, changed, ranks=ranks, compiled=compiled, packed=packed)
        found = predict(shape, other, changed, works[kind], device=machine.device, outside=prediction.outside)
        if found.peak <= machine.memory:
            fitting = _changes(lora, params, other, changed) + f" ({found.peak / 1e9:.2f} GB)"
            break
    advice = f"Set {fitting}" if fitting else "Take a smaller or a quantized base model (convert.quantize 4)"
    return SqloraError(
        "params.yaml",
        found=f"settings that need {prediction.peak / 1e9:.2f} GB of memory, most of it for {prediction.largest}",
        expected=f"at most {machine.memory / 1e9:.2f} GB, what {machine.name} has for it",
        next_step=f"{advice}; `python -m sqlora plan` lists more. `train.force: true` tries it all the same.",
    )


def _changes(lora: LoraParams, params: TrainParams, other: LoraParams, changed: TrainParams) -> str:
    """`train.batch_size 1, lora.layers 8`: the keys that differ, as params.yaml names them."""
    differing = [
        f"{section}.{field.name} {str(getattr(new, field.name)).lower()}"
        for section, old, new in (("train", params, changed), ("lora", lora, other))
        for field in dataclasses.fields(old)
        if getattr(old, field.name) != getattr(new, field.name)
    ]
    return ", ".join(differing)
