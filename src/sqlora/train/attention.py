"""Causal attention with its backward pass written out; the heads that share a key are rows of one matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlora.mlx import mx

from sqlora.train.cuda.layers import LayerKernels
from sqlora.train.exponential import softmax

# Up to here the attention's weights are computed as plain matrix products and kept. MLX's fused attention prepares a
# cuDNN plan for every new shape, at a tenth of a second each; for longer inputs the memory that it saves is worth that.
PLAIN_ATTENTION = 512


Mask = Any  # an array or "causal"


@dataclass(frozen=True)
class Attended:
    """What the way back needs: query (rows, heads, length, size), key and value (rows, kv heads, length, size), all
    behind the rotation, the attention's weights where they are plain products, and of the attention kernels mixed (T,
    heads * size), what came out, and sums (heads, T), the weights' sums' logarithms to base 2.
    """

    query: mx.array
    key: mx.array
    value: mx.array
    weights: mx.array | None = None
    mixed: mx.array | None = None
    sums: mx.array | None = None


def make_mask(length: int, dtype: mx.Dtype, repeats: int, window: int | None) -> mx.array | str:
    """Causal, and within the window if there is one.

    Returns:
        For short inputs (repeats * length, length): 0 or minus infinity for the queries of the heads that share a key;
        "causal" for long ones, or a boolean (length, length) where the window is shorter than the input.
    """
    if length > PLAIN_ATTENTION and (window is None or window >= length):
        return "causal"
    place = mx.arange(length)
    seen = place[:, None] >= place
    if window is not None and window < length:
        seen = seen & (place[:, None] < place + window)
    if length > PLAIN_ATTENTION:
        return seen
    return mx.tile(mx.where(seen, mx.array(0, dtype), mx.array(-mx.inf, dtype)), (repeats, 1))


def attend(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    mask: Mask,
    scale: float,
    kernels: LayerKernels | None = None,
    window: int | None = None,
    spans: mx.array | None = None,
) -> tuple[mx.array, Attended]:
    """(rows, heads, length, size) and twice (rows, kv heads, length, size) -> (T, heads * size), and what is kept.

    Args:
        kernels: in place of MLX's operations, for short inputs; they know the mask by its window.
        spans: as in Ready, for kernels that attend, where all tokens are one row.
    """
    rows, heads, length, size = query.shape
    weights = None
    if kernels and spans is not None:
        mixed, sums = kernels.attend(query, key, value, spans, window)
        return mixed, Attended(query, key, value, mixed=mixed, sums=sums)
    if length > PLAIN_ATTENTION:
        mixed = mx.fast.scaled_dot_product_attention(query, key, value, scale=scale, mask=mask)
    else:
        # The queries that share a key stand in one matrix, so that keys need not be repeated.
        shared = query.reshape(rows, key.shape[1], -1, size)
        scores = shared @ key.swapaxes(-1, -2)
        weights = kernels.softmax(scores, window) if kernels else softmax(scores * scale + mask)
        mixed = (weights @ value).reshape(rows, heads, length, size)
    return mixed.transpose(0, 2, 1, 3).reshape(rows * length, -1), Attended(query, key, value, weights)


def attend_back(
    gradient: mx.array,
    attended: Attended,
    mask: Mask,
    scale: float,
    kernels: LayerKernels | None = None,
    window: int | None = None,
    spans: mx.array | None = None,
) -> tuple[mx.array, mx.array, mx.array]:
    """Gradients of query, key and value, in their shapes; the attention kernels give those of key and value in parts to
    be added up: (1, kv heads * parts, T, size).
    """
    rows, heads, length, size = attended.query.shape
    if attended.mixed is not None and attended.sums is not None:
        assert kernels
        assert spans is not None
        whole = (attended.query, attended.key, attended.value, attended.mixed, attended.sums)
        return kernels.attend_back(gradient, *whole, spans, window)
    gradient = gradient.reshape(rows, length, heads, size).transpose(0, 2, 1, 3)
    if attended.weights is None:

        def fused(query: mx.array, key: mx.array, value: mx.array) -> mx.array:
            return mx.fast.scaled_dot_product_attention(query, key, value, scale=scale, mask=mask)

        query, key, value = mx.vjp(fused, [attended.query, attended.key, attended.value], [gradient])[1]
        return query, key, value
    shared = (rows, attended.key.shape[1], heads // attended.key.shape[1] * length, size)
    gradient = gradient.reshape(shared)
    d_value = attended.weights.swapaxes(-1, -2) @ gradient
    d_weights = gradient @ attended.value.swapaxes(-1, -2)
    if kernels:
        d_scores = kernels.softmax_back(attended.weights, d_weights)
    else:
        mean = (attended.weights * d_weights).sum(axis=-1, keepdims=True)
        d_scores = attended.weights * ((d_weights - mean) * scale)
    d_query = (d_scores @ attended.key).reshape(attended.query.shape)
    d_key = d_scores.swapaxes(-1, -2) @ attended.query.reshape(shared)
    return d_query, d_key, d_value
