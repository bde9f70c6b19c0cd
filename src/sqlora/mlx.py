"""MLX, imported after the fast BLAS that it is to use.

Every module imports MLX from here, and before anything that imports MLX itself (mlx_lm); a test checks both. This is
the one module of sqlora that does work at import: whatever the entry point, the order cannot be got wrong.
"""

from __future__ import annotations

from sqlora.quantized import dequantizing
from sqlora.runtime import load_fast_blas

BLAS = load_fast_blas()

import mlx.core as mx  # noqa: E402 - the order is what this module is for
import mlx.nn as nn  # noqa: E402
import mlx.optimizers as optimizers  # noqa: E402
from mlx.utils import tree_flatten, tree_map, tree_unflatten  # noqa: E402

if mx.default_device().type != mx.DeviceType.gpu:
    mx.quantized_matmul = dequantizing(mx)

__all__ = ["BLAS", "mx", "nn", "optimizers", "tree_flatten", "tree_map", "tree_unflatten"]
