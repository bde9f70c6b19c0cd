"""exp and what is made of it, for a CPU: MLX's own takes 15 to 40 ns a number on Linux, which adds up to more than the
matrix products of a small model.

exp(x) is 2^i e^r with i whole and |r| at most ln(2) / 2 (argument reduction as in Cody and Waite, 1980): a polynomial
of plain multiplications and additions, which MLX vectorises, and i put into the exponent's bits. Its relative error is
below 3e-7. Other devices, and other types than float32, use MLX's operations. The loss stays with MLX's: its matrix of
logits is too large for the cache, where a polynomial of twenty operations gains nothing.
"""

from __future__ import annotations

import math
from functools import cache

from sqlora.mlx import mx

# Taylor's coefficients of e^r; what the polynomial leaves out is below 1.2e-7 where |r| <= ln(2) / 2.
_COEFFICIENTS = [1 / math.factorial(order) for order in range(6, -1, -1)]
_HIGH = 0.693359375  # ln 2 in two parts, the first with so few bits that its products with i are exact
_LOW = math.log(2) - _HIGH
_LEAST = -87.0  # e^x is a normal number from here on
# Of the largest weight of a softmax: what is less is nothing. Masked positions had e^-87 for a weight, which divided by
# the sum is a subnormal number; a step on an Intel Xeon took three times as long with them (docs/decisions.md).
_NOTHING = -50.0


def exp(x: mx.array, least: float = _LEAST) -> mx.array:
    """e^x for float32; below `least`, and for minus infinity, what it is there."""
    x = mx.clip(x, least, 88.0)
    power = mx.round(x * (1 / math.log(2)))
    rest = (x - power * _HIGH) - power * _LOW
    value = rest * _COEFFICIENTS[0] + _COEFFICIENTS[1]
    for coefficient in _COEFFICIENTS[2:]:
        value = value * rest + coefficient
    return value * ((power.astype(mx.int32) + 127) << 23).view(mx.float32)


def sigmoid(x: mx.array) -> mx.array:
    """1 / (1 + e^-x)."""
    return 1 / (1 + exp(-x)) if _plain(x) else mx.sigmoid(x)


def softmax(x: mx.array) -> mx.array:
    """Over the last axis, computed in float32 at least; weights below 2e-22 of the largest are 0."""
    if not _plain(x):
        return mx.softmax(x, axis=-1, precise=True)
    powers = exp(x - x.max(axis=-1, keepdims=True), _NOTHING) - _nothing()
    return powers * (1 / powers.sum(axis=-1, keepdims=True))


@cache
def _nothing() -> float:
    """What `exp` gives for _NOTHING, to the bit."""
    return float(exp(mx.array(_NOTHING), _NOTHING).item())  # type: ignore[arg-type]


def _plain(x: mx.array) -> bool:
    return x.dtype == mx.float32 and mx.default_device().type == mx.DeviceType.cpu
