"""The optimizer and its learning rate, as params.yaml describes them."""

from __future__ import annotations

from collections.abc import Callable

from sqlora.mlx import mx, optimizers

from sqlora.params.train import TrainParams


def make_optimizer(params: TrainParams) -> optimizers.Optimizer:
    """Adam (Kingma and Ba, 2015) or AdamW (Loshchilov and Hutter, 2019); its state holds the step, so it can resume.

    The bias of the moments is not corrected, which is MLX's default and what mlx_lm.lora does: the first steps are
    larger than those of PyTorch's optimizers, 3 times at first, 6.6 at the twelfth and 3 again at the hundredth.
    """
    schedule = learning_rate(params)
    if params.optimizer == "adamw":
        return optimizers.AdamW(learning_rate=schedule, weight_decay=params.weight_decay)
    return optimizers.Adam(learning_rate=schedule)


def learning_rate(params: TrainParams) -> float | Callable[[mx.array], mx.array]:
    """Constant, or falling linearly or along a cosine to zero at the end, after a linear rise over `warmup` steps."""
    peak, warmup = params.learning_rate, params.warmup
    rest = max(1, params.iterations - warmup)
    if params.schedule == "constant" and not warmup:
        return peak
    after: Callable[[mx.array], mx.array]
    if params.schedule == "linear":
        after = optimizers.linear_schedule(peak, 0.0, rest)
    elif params.schedule == "cosine":
        after = optimizers.cosine_decay(peak, rest)
    else:
        after = optimizers.linear_schedule(peak, peak, 1)
    if not warmup:
        return after
    joined: Callable[[mx.array], mx.array] = optimizers.join_schedules(
        [optimizers.linear_schedule(peak / (warmup + 1), peak, warmup), after], [warmup]
    )
    return joined
