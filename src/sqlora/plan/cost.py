"""What a run costs beside memory: disk, and time from a short measurement of this machine."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import Any

from sqlora.mlx import mx, nn

import numpy as np
from mlx_lm.models import llama

from sqlora.params.lora import LoraParams
from sqlora.params.train import TrainParams
from sqlora.plan.memory import adapter_size
from sqlora.plan.shape import Shape
from sqlora.plan.work import Work
from sqlora.runtime import has_cuda
from sqlora.train.checkpoint import KEPT
from sqlora.train.feed import transfer
from sqlora.train.lora import add_lora
from sqlora.train.loss import Batch
from sqlora.train.step import Stepper, compiles
from sqlora.train.upper import Upper

_PATIENCE = 1.0  # seconds that a measured step may take; larger models are estimated from the matrix product alone
_EFFICIENCY = 0.6  # of a step's layers against a single matrix product, where no step was measured


@dataclass(frozen=True)
class Speed:
    """flops: floating-point operations a second of a matrix product in the model's type, of a training batch's size.

    layer: seconds a token takes in one layer, forth and back; rest: seconds a batch takes beside its layers.
    """

    flops: float
    layer: float
    rest: float


def disk(shape: Shape, lora: LoraParams, params: TrainParams, work: Work) -> dict[str, int]:
    """Bytes of the model's folder, and of what training writes: frozen states, checkpoints, the adapter."""
    frozen = shape.layers - lora.layers if params.states_gb else 0
    adapter = 4 * adapter_size(shape, lora)
    return {
        "model": shape.model_bytes,
        "states": work.state_tokens * shape.hidden * shape.itemsize if frozen else 0,
        # Adapter, Adam's two moments, the best so far; another one is written before the oldest goes.
        "checkpoints": (KEPT + 1) * 4 * adapter,
        "adapter": adapter,
    }


def seconds(shape: Shape, lora: LoraParams, params: TrainParams, work: Work, speed: Speed) -> float:
    """An estimate of the train stage's time, without loading and compilation."""
    batches = params.iterations * params.gradient_accumulation
    # Half of a layer's work is the way forth; checkpointing repeats it.
    forth = speed.layer / 2
    layer = speed.layer + forth * params.gradient_checkpointing
    below = shape.layers - lora.layers
    checks = 1 + math.ceil(params.iterations / params.validate_every)
    steps = batches * (lora.layers * layer * work.mean_tokens + speed.rest)
    head = 2 * shape.hidden * shape.vocab / speed.flops
    validation = checks * work.valid_tokens * (lora.layers * forth + head)
    if params.states_gb:
        frozen = work.state_tokens * below * forth
    else:
        frozen = (batches * work.mean_tokens + checks * work.valid_tokens) * below * forth
    return steps + frozen + validation


def measure(shape: Shape, lora: LoraParams, params: TrainParams, work: Work) -> Speed:
    """Time a matrix product, and training steps of one and two layers of this shape with random weights."""
    rows = params.batch_size
    length = max(1, round(work.mean_tokens / rows))
    tokens = rows * length
    dtype = {4: mx.float32, 2: mx.bfloat16}[shape.itemsize]
    a, b = mx.ones((tokens, shape.hidden), dtype=dtype), mx.ones((shape.hidden, shape.inner), dtype=dtype)
    flops = 2 * tokens * shape.hidden * shape.inner / _timed(lambda: mx.eval(a @ b))
    weights = sum(inputs * outputs for inputs, outputs in shape.projections.values())
    one = 4 * tokens * weights / flops
    if 2 * one / _EFFICIENCY > _PATIENCE or not shape.written:
        head = 4 * rows * length / 3 * shape.hidden * shape.vocab / flops  # a third of the tokens is counted
        return Speed(flops, one / tokens / _EFFICIENCY, head)
    short, long = (_step_seconds(shape, lora, params, rows, length, layers, dtype) for layers in (1, 3))
    layer = max(long - short, 0.0) / 2
    return Speed(flops, layer / tokens, max(short - layer, 0.0))


def _timed(work: Any, repeats: int = 5) -> float:
    """The best of a few, in seconds; the first, which may compile, does not count."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def _step_seconds(
    shape: Shape, lora: LoraParams, params: TrainParams, rows: int, length: int, layers: int, dtype: mx.Dtype
) -> float:
    args = llama.ModelArgs(
        model_type="llama",
        hidden_size=shape.hidden,
        num_hidden_layers=layers,
        intermediate_size=shape.inner,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads * shape.keys // shape.queries,
        head_dim=shape.queries // shape.heads,
        rms_norm_eps=1e-5,
        vocab_size=shape.vocab,
        tie_word_embeddings=shape.tied,
    )
    model = llama.Model(args)
    model.set_dtype(dtype)
    if shape.bits is not None:
        nn.quantize(
            model,
            group_size=shape.group_size,
            bits=shape.bits,
            class_predicate=lambda _, module: (
                hasattr(module, "to_quantized") and module.weight.shape[-1] % shape.group_size == 0
            ),
        )
    upper = Upper(model, 0)
    upper.freeze()
    same = dataclasses.replace(lora, layers=layers)
    add_lora(upper, same, seed=1)
    stepper = Stepper(upper, same, params, compiled=compiles(), fused=has_cuda())  # as training does
    # States go in, as from a store, so the embedding is never computed. A third of the tokens is counted.
    counted = np.arange(0, rows * length, 3, dtype=np.int32)
    kind = np.float32 if shape.itemsize == 4 else np.uint16
    states = np.zeros((rows, length, shape.hidden), dtype=kind)
    ones = np.ones(len(counted), dtype=np.float32)
    batch = transfer([Batch(states, counted, counted % shape.vocab, ones, ones, rows * length)])
    return _timed(lambda: mx.eval(stepper.step(batch)), repeats=3)
