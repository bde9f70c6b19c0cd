"""A product with a 4-bit weight on a CPU, by MLX's own function and by sqlora's, and with the plain weight.

    python benchmarks/quantized.py

Milliseconds, the median of five.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, cast

from sqlora.mlx import mx

SHAPES = ((864, 320), (1536, 576))
ROWS = (8, 32, 420)


def main() -> None:
    """Print a line for each type, shape and number of rows."""
    own = cast(Callable[..., mx.array], mx.quantized_matmul.__wrapped__)  # type: ignore[attr-defined]
    print(f"{'type':<10}{'weight':>12}{'rows':>6}{'own':>10}{'sqlora':>10}{'plain':>10}")
    for dtype in (mx.float32, mx.bfloat16):
        for shape in SHAPES:
            weight = mx.random.normal(shape).astype(dtype)
            packed = mx.quantize(weight, group_size=64, bits=4)
            for count in ROWS:
                rows = mx.random.normal((count, shape[1])).astype(dtype)
                mx.eval(rows, weight, packed)
                times = [
                    timed(lambda rows=rows, one=one, packed=packed: one(rows, *packed, True, 64, 4))  # type: ignore[misc]
                    for one in (own, mx.quantized_matmul)
                ]
                times.append(timed(lambda rows=rows, weight=weight: rows @ weight.T))  # type: ignore[misc]
                name = str(dtype).rpartition(".")[2]
                print(f"{name:<10}{shape[0]:>6} x {shape[1]:<3}{count:>6}" + "".join(f"{one:>10.2f}" for one in times))


def timed(run: Callable[[], Any]) -> float:
    """Milliseconds of a product."""
    taken = []
    for _ in range(6):  # the first is not counted
        started = time.perf_counter()
        mx.eval(run())
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken[1:])


if __name__ == "__main__":
    main()
