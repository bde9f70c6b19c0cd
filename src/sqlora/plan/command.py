"""`python -m sqlora plan`: what the current settings and their alternatives take, before anything is computed."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

from sqlora.mlx import mx

from sqlora.errors import SqloraError
from sqlora.params.all import SECTIONS
from sqlora.params.reader import PARAMS_FILE, read_params
from sqlora.plan.cost import Speed, measure
from sqlora.plan.machine import Machine, outside_memory, this_machine
from sqlora.plan.options import Option, options
from sqlora.plan.shape import Shape, known_shape, name_of, shape_of
from sqlora.plan.work import Size, assumed_sizes, sizes_of, work_of
from sqlora.tokenizer import Tokenizer
from sqlora.train.data import encode, read_config
from sqlora.train.stores import ROOT as STATES
from sqlora.train.stores import bytes_of

GIGABYTE = 1e9
_WIKISQL = (56_355, 8_421)  # questions of its train and dev parts, for a size of null


def run(
    root: Path,
    *,
    model: Path | None,
    shape: str | None,
    params: Path | None,
    memory_gb: float | None,
    device: str | None,
    as_json: bool,
) -> int:
    """Print the plan; returns the exit status, 1 where the current settings do not fit.

    Args:
        root: of the project.
        model: folder of a converted model; shape: name of a known one. With neither, params.yaml's model.source if its
            shape is known, or else artifacts/model.
        memory_gb, device: of another machine; then no time is estimated.

    Raises:
        SqloraError: an unknown shape, no model to plan for, a mistake in params.yaml, a machine that is not described.
    """
    _require_clear(model, shape, memory_gb, device)
    file = params or root / PARAMS_FILE
    values = read_params(file, SECTIONS)
    convert, lora, train = values["convert"], values["lora"], values["train"]
    found, about, folder = _shape(root, model, shape, values["model"].source)
    found = found.converted(convert.dtype, convert.quantize, convert.group_size)
    if lora.layers > found.layers:
        raise SqloraError(
            file,
            found=f"lora.layers: {lora.layers}",
            expected=f"at most {found.layers}, the number of layers of the base model",
            next_step="Lower lora.layers.",
        )
    sizes, lengths = _sizes(root, folder, found, values["split"])
    machine, here = this_machine(), memory_gb is None and device is None
    if not here:
        memory = machine.memory if memory_gb is None else int(memory_gb * GIGABYTE)
        machine = Machine(device or machine.device, memory, "the machine to plan for")
    if machine.device == "cpu":  # whose memory the ranks share
        machine = dataclasses.replace(machine, memory=machine.memory // train.workers)
    outside = outside_memory() if machine.device == "cpu" else 0
    # What several ranks would take was not measured.
    speed = measure(found, lora, train, work_of(*sizes, train)) if here and train.workers == 1 else None
    mx.clear_cache()
    room = train.states_gb * GIGABYTE
    if here:
        room = min(room, _free(root))
    every = options(found, convert, lora, train, sizes, machine, speed, outside, room)
    current = next(option for option in every if option.current)
    if as_json:
        print(json.dumps(_json(every, machine, speed, about, lengths), indent=2))
    else:
        print("\n".join(_table(every, current, machine, speed, about, lengths)))
    return 0 if current.fits and current.stores else 1


def _require_clear(model: Path | None, shape: str | None, memory_gb: float | None, device: str | None) -> None:
    if model is not None and shape is not None:
        raise SqloraError(
            "plan",
            found="both --model and --shape",
            expected="one of them",
            next_step="Leave out the one that is not meant.",
        )
    if memory_gb is not None and not 0 < memory_gb < math.inf:
        raise SqloraError(
            "--memory",
            found=f"{memory_gb:g}",
            expected="a number of GB above 0",
            next_step="Name the memory that a run may take there, such as --memory 21.5.",
        )
    if memory_gb is None and device not in (None, this_machine().device):
        raise SqloraError(
            f"--device {device}",
            found=f"no --memory, and a {this_machine().device} here",
            expected="the memory of that machine",
            next_step="Add --memory GB.",
        )


def _free(root: Path) -> int:
    """Bytes that the states of frozen layers may take: what is free, and what they have already."""
    states = root / STATES
    return shutil.disk_usage(states if states.is_dir() else root).free + bytes_of(states)


def _shape(
    root: Path, model: Path | None, shape: str | None, source: str | tuple[str, ...]
) -> tuple[Shape, str, Path | None]:
    """The model's shape, what it is, and the folder of its tokenizer if there is one."""
    folder = model or root / "artifacts/model"
    if shape is not None:
        return known_shape(shape), f"the shape of {shape}", None
    name = None if model else name_of(source)
    there = (folder / "config.json").is_file()
    if model or (name is None and there):
        return shape_of(read_config(folder)), str(folder), folder
    if name is None:
        raise SqloraError(
            "params.yaml, model.source",
            found="a model whose shape is not known, and no artifacts/model",
            expected="a converted model, or a known shape",
            next_step="Name one with --shape or --model, or run dvc repro convert first.",
        )
    known = known_shape(name)
    same = there and shape_of(read_config(folder)).projections == known.projections
    return known, f"the shape of {name}", folder if same else None


def _sizes(root: Path, folder: Path | None, shape: Shape, split: Any) -> tuple[tuple[list[Size], list[Size]], str]:
    dataset = root / "artifacts/dataset"
    if folder and all((dataset / f"{name}.jsonl").is_file() for name in ("train", "valid")):
        tokenizer, config = Tokenizer(folder), read_config(folder)
        train, valid = (sizes_of(encode(dataset / f"{name}.jsonl", tokenizer, config)) for name in ("train", "valid"))
        return (train, valid), f"{len(train):,} and {len(valid):,} examples of artifacts/dataset"
    counts = [
        size if size is not None else most
        for size, most in zip((split.train_size, split.valid_size), _WIKISQL, strict=True)
    ]
    train, valid = map(assumed_sizes, counts)
    longest = max(one.length for one in train)
    return (train, valid), f"assumed: {counts[0]:,} and {counts[1]:,} examples like WikiSQL's, up to {longest} tokens"


def _table(
    every: list[Option], current: Option, machine: Machine, speed: Speed | None, about: str, lengths: str
) -> list[str]:
    kinds = list(dict.fromkeys((one.quantize, one.train.gradient_checkpointing) for one in every))
    heads = [("plain" if bits is None else f"{bits} bits", "+checkp." if check else "") for bits, check in kinds]
    lines = [
        f"model     {about}, {current.disk['model'] / GIGABYTE:.1f} GB",
        f"examples  {lengths}",
        f"machine   {machine.name}: {machine.memory / GIGABYTE:.1f} GB of memory for a run",
    ]
    if speed:
        lines.append(f"speed     {speed.flops / 1e12:.3g} TFLOP/s in a matrix product of a batch's size")
    lines += [
        "",
        f"{'':<19}{'':>12}{'':>11}{'':>10}  peak memory in GB, ! = does not fit",
        f"  {'batch':>5}{'layers':>8}{'trainable':>14}{'disk':>11}{'time':>10}  "
        + "".join(f"{first:>9}" for first, _ in heads),
        f"{'':<52}" + "".join(f"{second:>9}" for _, second in heads),
    ]
    lines[-3] = f"{'':<52}peak memory in GB; ! does not fit"
    rows = dict.fromkeys((one.train.batch_size, one.lora.layers) for one in every)
    for batch, layers in rows:
        same = [one for one in every if (one.train.batch_size, one.lora.layers) == (batch, layers)]
        # Disk and time of the kind that params.yaml asks for.
        kind = (current.quantize, current.train.gradient_checkpointing)
        shown = next(one for one in same if (one.quantize, one.train.gradient_checkpointing) == kind)
        written = sum(shown.disk.values()) - shown.disk["model"]
        cells = "".join(
            f"{('>' if one.current else '') + f'{one.prediction.peak / GIGABYTE:.2f}' + ' !'[not one.fits]:>9}"
            for one in same
        )
        lines.append(
            f"{'>' if shown.current else ' '} {batch:>5}{layers:>8}{shown.trainable:>14,}"
            f"{written / GIGABYTE:>8.2f} GB{'  ' if shown.stores else ' !'}{_duration(shown.seconds):>8}  {cells}"
        )
    lines += [
        "",
        "> is params.yaml. disk: frozen layers' states, checkpoints, adapter. time: an estimate of the train",
        "stage with the same train.iterations. Columns: convert.quantize, train.gradient_checkpointing.",
    ]
    if current.train.workers > 1:
        lines.append(f"Memory is that of each of {current.train.workers} processes (train.workers).")
    if not current.fits:
        lines.append("The current settings do not fit this machine: training will refuse them.")
    if not current.stores:
        lines += [
            f"The frozen layers' states take {current.disk['states'] / GIGABYTE:.3g} GB, more than train.states_gb or",
            "the disk has room for: training will refuse them. Raise train.states_gb, or set it to 0.",
        ]
    return [line.rstrip() for line in lines]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _json(every: list[Option], machine: Machine, speed: Speed | None, about: str, lengths: str) -> dict[str, Any]:
    return {
        "model": about,
        "examples": lengths,
        "machine": {"device": machine.device, "name": machine.name, "memory_gb": _gb(machine.memory)},
        "tflops": None if speed is None else round(speed.flops / 1e12, 4),
        "options": [
            {
                "current": one.current,
                "batch_size": one.train.batch_size,
                "layers": one.lora.layers,
                "quantize": one.quantize,
                "gradient_checkpointing": one.train.gradient_checkpointing,
                "peak_memory_gb": _gb(one.prediction.peak),
                "fits": one.fits,
                "room_for_states": one.stores,
                "largest_phase": one.prediction.largest,
                "phases_gb": {
                    phase: {name: _gb(size) for name, size in arrays.items()}
                    for phase, arrays in one.prediction.phases.items()
                },
                "disk_gb": {name: _gb(size) for name, size in one.disk.items()},
                "seconds": None if one.seconds is None else round(one.seconds, 1),
                "trainable_parameters": one.trainable,
            }
            for one in every
        ],
    }


def _gb(size: float) -> float:
    return round(size / GIGABYTE, 3)
