"""Quantizes weights as `mlx_lm.convert -q` does, some rows at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sqlora.convert.shards import Entry
from sqlora.errors import SqloraError

_CHUNK_BYTES = 64_000_000


def quantization_config(bits: int, group_size: int) -> dict[str, Any]:
    """What config.json says about it: under mlx-lm's key, and under the one that the Hugging Face hub looks for."""
    settings = {"group_size": group_size, "bits": bits, "mode": "affine"}
    return {"quantization": settings, "quantization_config": settings}


def is_quantized(name: str, shape: tuple[int, ...], group_size: int) -> bool:
    """Whether mlx-lm quantizes a tensor: matrices whose rows are whole groups; others stay as they are."""
    return name.endswith(".weight") and len(shape) == 2 and shape[1] % group_size == 0


def require_some(shapes: Mapping[str, tuple[int, ...]], group_size: int, where: object) -> list[str]:
    """The matrices that stay unquantized; raises SqloraError if no matrix at all can be quantized."""
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    left = [name for name, shape in matrices.items() if not is_quantized(name, shape, group_size)]
    if len(left) == len(matrices):
        raise SqloraError(
            where,
            found=f"no matrix whose rows are a multiple of {group_size}",
            expected="some to quantize in groups of that size",
            next_step="Lower convert.group_size in params.yaml, or set convert.quantize to null.",
        )
    return left


def quantized_entries(name: str, shape: tuple[int, ...], dtype: torch.dtype, bits: int, group_size: int) -> list[Entry]:
    """The three tensors that take the weight's place: packed integers, scales and biases of each group."""
    rows, columns = shape
    base = name.removesuffix("weight")
    groups = (rows, columns // group_size)
    return [
        Entry(name, (rows, columns * bits // 32), torch.uint32),
        Entry(f"{base}scales", groups, dtype),
        Entry(f"{base}biases", groups, dtype),
    ]


def quantize_weight(tensor: torch.Tensor, bits: int, group_size: int) -> list[torch.Tensor]:
    """Packed weight (uint32), scales and biases (of the tensor's dtype) of a matrix, computed by MLX.

    Args:
        tensor: (rows, columns), columns a multiple of `group_size`; float32, bfloat16 or float16.
    """
    # Without quantization the conversion has no use for MLX.
    from sqlora.mlx import mx

    rows = max(1, _CHUNK_BYTES // (tensor.shape[1] * tensor.itemsize))
    pieces: list[list[torch.Tensor]] = []
    # Groups lie within rows, so the result of a few rows is the same rows of the whole result.
    for start in range(0, tensor.shape[0], rows):
        quantized = mx.quantize(_to_mlx(tensor[start : start + rows], mx), group_size=group_size, bits=bits)
        mx.eval(*quantized)
        pieces.append([_to_torch(array, tensor.dtype, mx) for array in quantized])
        del quantized
    mx.clear_cache()
    return [torch.cat(list(parts)) for parts in zip(*pieces, strict=True)]


def _to_mlx(tensor: torch.Tensor, mx: Any) -> Any:
    if tensor.dtype == torch.bfloat16:  # numpy has none
        return mx.array(tensor.contiguous().view(torch.uint16).numpy()).view(mx.bfloat16)
    return mx.array(tensor.numpy())


def _to_torch(array: Any, dtype: torch.dtype, mx: Any) -> torch.Tensor:
    if array.dtype == mx.bfloat16:
        return torch.from_numpy(np.array(array.view(mx.uint16))).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))
