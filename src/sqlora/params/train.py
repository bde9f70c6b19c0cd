"""The `train` section: how the adapter is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sqlora.params.reader import OneOf, Range

MOST_BATCHES = 10_000  # of a step


@dataclass(frozen=True)
class TrainParams:
    """batch_size: examples a step goes through at once; gradient_accumulation: how many such batches a step adds up.

    iterations: steps; learning_rate: of the optimizer, at its peak; schedule: how it goes on after `warmup` steps of
    rising; weight_decay: of adamw.
    loss: `completion` counts the answer's tokens, `all` the prompt's too, as the reference does.
    max_gradient_norm: longer gradients are shortened to it; null never.
    gradient_checkpointing: compute a layer's inner values again instead of keeping them; a third slower, less memory.
    report_every, validate_every, checkpoint_every: in iterations; the last iteration always reports and validates.
    keep: which adapter is published, the one with the `best` validation loss or the `last`.
    early_stopping: end after so many validations without a better one; null never.
    states_gb: disk space for stored states of the frozen layers, in GB (1e9 bytes); 0 stores none.
    seed: of the adapter's initial values, the order of examples and dropout.
    workers: processes of this machine that share each step; hostfile: of mlx.launch, for several machines, or null;
    backend: of mlx.distributed; auto is nccl on CUDA and ring elsewhere, unless the hostfile names one.
    force: train even if the memory that is predicted is more than the machine has.
    """

    batch_size: Annotated[int, Range(least=1)]
    gradient_accumulation: Annotated[int, Range(least=1, most=MOST_BATCHES)]
    iterations: Annotated[int, Range(least=1)]
    optimizer: Annotated[str, OneOf(("adam", "adamw"))]
    learning_rate: Annotated[float, Range(above=0, most=1)]
    schedule: Annotated[str, OneOf(("constant", "linear", "cosine"))]
    warmup: Annotated[int, Range(least=0)]
    weight_decay: Annotated[float, Range(least=0, most=1)]
    max_gradient_norm: Annotated[float, Range(above=0)] | None
    loss: Annotated[str, OneOf(("completion", "all"))]
    gradient_checkpointing: bool
    report_every: Annotated[int, Range(least=1)]
    validate_every: Annotated[int, Range(least=1)]
    checkpoint_every: Annotated[int, Range(least=1)]
    keep: Annotated[str, OneOf(("best", "last"))]
    early_stopping: Annotated[int, Range(least=1)] | None
    states_gb: Annotated[float, Range(least=0)]
    seed: Annotated[int, Range(least=0, most=2**32 - 1)]
    workers: Annotated[int, Range(least=1)]
    hostfile: str | None
    backend: Annotated[str, OneOf(("auto", "ring", "mpi", "nccl"))]
    force: bool
