"""Products with quantized weights on a CPU.

MLX's own take a number at a time there: 99 ms for 420 rows and a weight of 864 x 320 in 4 bits, where dequantizing it
and multiplying by the BLAS takes 1.8 ms in all (docs/decisions.md). So that every product profits, those of mlx-lm's
layers too, sqlora.mlx puts this one in the place of `mx.quantized_matmul` where MLX computes on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

_FEW = 8  # with fewer rows a weight may cost more to dequantize than to multiply by


def dequantizing(mx: ModuleType) -> Callable[..., Any]:
    """A `quantized_matmul` that computes in float32, with the same arguments and, but for rounding, results.

    Gradients go to its first argument alone, and it knows no `mx.jvp`.

    Args:
        mx: mlx.core; its own function computes what has few rows or is not affine.
    """
    own = mx.quantized_matmul

    @wraps(own)
    def quantized_matmul(
        x: Any,
        w: Any,
        /,
        scales: Any,
        biases: Any = None,
        transpose: bool = True,
        group_size: int | None = None,
        bits: int | None = None,
        mode: str = "affine",
        *,
        stream: Any = None,
    ) -> Any:
        floating = mx.issubdtype(x.dtype, mx.floating)
        if mode != "affine" or w.ndim != 2 or x.size < _FEW * x.shape[-1] or biases is None or not floating:
            return own(x, w, scales, biases, transpose, group_size, bits, mode, stream=stream)

        def product(rows: Any, transpose: bool) -> Any:
            factors = scales.astype(mx.float32), biases.astype(mx.float32)
            # Not before its rows are there, or several layers' weights are made at once.
            packed = mx.depends(w, rows)
            weight = mx.dequantize(packed, *factors, group_size=group_size, bits=bits, mode=mode, stream=stream)
            weight = weight.T if transpose else weight
            return mx.matmul(rows.astype(mx.float32), weight, stream=stream)

        # Or the dequantized weights of all layers would stay in memory until the way back.
        result = x.dtype if x.dtype == scales.dtype else mx.float32
        forward = mx.custom_function(lambda rows: product(rows, transpose).astype(result))
        forward.vjp(lambda _, gradient, __: product(gradient, not transpose).astype(x.dtype))
        return forward(x)

    return quantized_matmul
