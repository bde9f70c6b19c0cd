"""Attention and the gated activation, on a CPU with NumPy's exponential.

MLX computes exp one number after another on a Linux CPU, 20 to 40 nanoseconds each; NumPy takes vectors, and about one
nanosecond. That is more than what all the matrices of a small model take. Elsewhere MLX's own kernels are used.
"""

from __future__ import annotations

from sqlora.mlx import mx

import numpy as np
from mlx_lm.models.activations import swiglu

from sqlora.generate.packed import additive

# So many scores are in memory at a time, 4 bytes each.
_SCORES = 32_000_000


def use_numpy(dtype: mx.Dtype) -> bool:
    """Whether this device and type gain from it."""
    return mx.default_device() == mx.Device(mx.cpu) and dtype == mx.float32


def gated(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up."""
    if not use_numpy(gate.dtype):
        result: mx.array = swiglu(gate, up)
        return result
    mx.eval(gate, up)
    values = np.array(gate, copy=False)
    negative = np.negative(values)
    with np.errstate(over="ignore"):  # exp(-gate) of a very negative gate is infinite, and the quotient zero
        np.exp(negative, out=negative)
    negative += 1.0
    np.divide(values, negative, out=negative)
    negative *= np.array(up, copy=False)
    return mx.array(negative)


def make_mask(seen: mx.array, dtype: mx.Dtype) -> mx.array:
    """What `attend` takes for (rows or 1, 1, new, slots), true where a query sees a key."""
    return seen if use_numpy(dtype) else additive(seen, dtype)


def attend(queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | str) -> mx.array:
    """Scaled dot-product attention.

    Args:
        queries: (rows, heads, new, width); keys, values: (rows, heads or a divisor of it, slots, width).
        mask: of make_mask; or "causal", where NumPy is not used.
    """
    rows, heads, new, width = queries.shape
    groups = keys.shape[1]
    if not use_numpy(queries.dtype):
        if isinstance(mask, str):
            result: mx.array = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)
            return result
        # The heads that share keys are rows of one matrix, and all matrices lie at equal distances. With a mask that is
        # an array MLX's own function would take as many operations again.
        shared = (queries * scale).reshape(rows, groups, -1, width)
        scores = (shared @ keys.swapaxes(-1, -2)).reshape(rows, groups, -1, new, keys.shape[2]) + mask[:, :, None]
        weights = mx.softmax(scores, axis=-1, precise=True).reshape(rows, groups, -1, keys.shape[2])
        mixed: mx.array = (weights @ values).reshape(rows, heads, new, width)
        return mixed
    assert not isinstance(mask, str)
    together = max(1, _SCORES // (rows * heads * keys.shape[2]))
    if new > together:  # a long prompt: some of its queries at a time
        parts = [slice(start, start + together) for start in range(0, new, together)]
        return mx.concatenate(
            [attend(queries[:, :, part], keys, values, scale, mask[:, :, part]) for part in parts], axis=2
        )
    mx.eval(queries, keys, values, mask)
    # The heads that share keys are rows of one matrix. NumPy's BLAS takes so small a one in one thread; the BLAS that
    # MLX uses wakes all threads for each, which takes ten times as long where other programs want the cores too.
    asked = np.array(queries, copy=False).reshape(rows, groups, -1, width)
    weights = np.matmul(asked, np.array(keys, copy=False).swapaxes(-1, -2)).reshape(rows, heads, new, -1)
    weights *= np.float32(scale)
    np.copyto(weights, np.float32(-np.inf), where=~np.array(mask, copy=False))
    with np.errstate(invalid="ignore"):  # what is padding may see nothing
        weights -= weights.max(-1, keepdims=True)
    np.exp(weights, out=weights)
    weights /= weights.sum(-1, keepdims=True)
    seen = np.matmul(weights.reshape(rows, groups, heads // groups * new, -1), np.array(values, copy=False))
    return mx.array(seen.reshape(rows, heads, new, width))
