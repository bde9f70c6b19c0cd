"""CUDA kernels that any model can use; those of layers are in sqlora.train.cuda.layers.

Where MLX has them, it compiles its own on a machine's first use, three seconds each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlora.mlx import mx

import numpy as np

from sqlora.runtime import has_cuda
from sqlora.train.cuda.compiler import TYPES, compiled, general_names, name_of

BLOCK_THREADS = 256  # threads of a block, where they do not share anything


@dataclass(frozen=True)
class Kernels:
    """dtype: of all arrays but those that are said to be of another; binaries: what NVRTC made of the sources, by
    kernel.
    """

    dtype: mx.Dtype
    binaries: Mapping[str, bytes]

    def rows(self, matrix: mx.array, indices: mx.array) -> mx.array:
        """Rows (count, width) of a matrix (size, width); of zeros where the index is not below size."""
        (size, width), count = matrix.shape, len(indices)
        numbers, threads = [count, width, size], count * width // 4
        indices = indices.astype(mx.int32)
        return self._run("rows", [matrix, indices], [(count, width)], threads, numbers, kept=[indices])[0]

    def gated(self, gate: mx.array, up: mx.array | None = None) -> mx.array:
        """silu(gate) * up, all (T, inner); without up, gate is (T, 2 * inner), both side by side."""
        rows, inner = gate.shape[0], gate.shape[1] // (2 if up is None else 1)
        arrays, numbers = [gate, gate if up is None else up], [rows, inner, int(up is None)]
        return self._run("gated", arrays, [(rows, inner)], rows * inner // 8, numbers)[0]

    def entries(self, vector: mx.array, scales: mx.array, indices: mx.array) -> mx.array:
        """vector[indices] * scales[indices], (count,); 0 where the index, int32, is not below their size.

        Args:
            vector, scales: (size,) in float32.
        """
        arrays, count = [vector, scales, indices], len(indices)
        return self._run("entries", arrays, [(count,)], count, [count, len(vector)], kept=arrays)[0]

    def entries_back(self, parts: mx.array, scales: mx.array, places: mx.array) -> mx.array:
        """parts[places] * scales, (size,) in float32.

        Args:
            scales, places: (size,), in float32 and int32.
        """
        size = len(scales)
        arrays, kept = [parts, scales, places], [scales, places]
        return self._run("entries_back", arrays, [(size,)], size, [size], [mx.float32], kept=kept)[0]

    def _run(
        self,
        name: str,
        arrays: list[mx.array],
        shapes: Sequence[Sequence[int]],
        threads: int,
        numbers: Sequence[int | float],
        dtypes: Sequence[mx.Dtype] = (),
        kept: Sequence[mx.array] = (),
        block: int = BLOCK_THREADS,
    ) -> list[mx.array]:
        """Call a kernel.

        Args:
            name: as in self.binaries; arrays: inputs, in the kernel's order; shapes: of its outputs.
            threads: at least so many.
            numbers: the kernel's other arguments, in its order.
            dtypes: of the outputs; self.dtype if left out.
            kept: those of the arrays that are not of self.dtype.
            block: threads of one.
        """
        wanted = [one if any(one is other for other in kept) else one.astype(self.dtype) for one in arrays]
        results: list[mx.array] = mx.fast.precompiled_cuda_kernel(
            name=name_of(name, type_name(self.dtype)),
            compiled_source=self.binaries[name],
            inputs=wanted,
            output_shapes=[tuple(shape) for shape in shapes],
            output_dtypes=list(dtypes) or [self.dtype] * len(shapes),
            # MLX takes no number that it would have to round.
            scalars=[float(np.float32(one)) if isinstance(one, float) else one for one in numbers],
            grid=(-(-threads // block) * block, 1, 1),
            threadgroup=(block, 1, 1),
            ensure_row_contiguous=True,
        )
        return results


def kernels_for(dtype: mx.Dtype, widths: Sequence[int]) -> Kernels | None:
    """For arrays of a type; None where there is no CUDA device, or a width does not fit them.

    Args:
        widths: of the matrices.

    Warns where there is one and the kernels cannot be compiled.
    """
    name = type_name(dtype)
    if not usable(dtype) or any(width % 8 for width in widths):
        return None
    binaries = compiled(general_names(), name)
    return None if binaries is None else Kernels(dtype, binaries)


def usable(dtype: mx.Dtype) -> bool:
    """Whether this process computes on a CUDA device, in a type that there are kernels for."""
    return has_cuda() and mx.default_device().type == mx.DeviceType.gpu and type_name(dtype) in TYPES


def type_name(dtype: mx.Dtype) -> str:
    """A key of TYPES, if there are kernels for it."""
    return str(dtype).rpartition(".")[2]
