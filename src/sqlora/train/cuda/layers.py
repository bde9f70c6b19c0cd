"""CUDA kernels for what stands between a layer's matrix products, where MLX needs several operations, and each costs
the host more than the device needs for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlora.mlx import mx, nn

import numpy as np
from mlx_lm.models.rope_utils import Llama3RoPE
from numpy.typing import NDArray

from sqlora.train.cuda.compiler import PRODUCTS, SIZES, attends, compiled, layer_names
from sqlora.train.cuda.kernels import Kernels, kernels_for, type_name, usable

_THREADS = 512  # of a block whose threads share what they read
_WARP = 32
_OWN = 64  # rows of a head that a block of the attention takes, as in the source
_ATTENTION_THREADS = 128
_ENOUGH_BLOCKS = 512  # of one kind, that a large GPU has something to do; with fewer, parts are to be added up
_TOKENS, _CHUNK = 2, 8  # as in the source
# Adapters are for these kernels up to so many tokens and ranks of a group; with more, MLX's products of matrices keep
# the device busier, and the host has time for them.
MOST_TOKENS = 512
_MOST_RANK = 32  # as in the source

Two = tuple[mx.array, mx.array]


@dataclass(frozen=True)
class LayerKernels(Kernels):
    """The kernels for an attention's shape.

    queries, keys: numbers of heads; size: of one; turns: (size / 2,) the angle by which each pair of numbers turns from
    one position to the next; scale: of the scores. Of an adapter's factors, first is (rank, inputs) and second (rank,
    outputs), rank a multiple of 8.
    """

    queries: int
    keys: int
    size: int
    turns: NDArray[np.float64]
    scale: float

    @property
    def attends(self) -> bool:
        """Whether there is `attend` for heads of this size."""
        return f"attend_{self.size}" in self.binaries

    def adapts(self, shape: tuple[int, int], rank: int) -> bool:
        """Whether an adapter of queries, keys and values is for `norm_low`, `turn` and their ways back."""
        return rank <= _MOST_RANK and math.prod(shape) <= MOST_TOKENS

    def norm_low(self, state: mx.array, weight: mx.array, first: mx.array, eps: float) -> Two:
        """(T, width) -> its RMSNorm, and that @ first.T (T, rank); first: (rank, width)."""
        (rows, width), rank = state.shape, len(first)
        arrays, shapes, numbers = [state, weight, first], [state.shape, (rows, rank)], [rows, width, rank, eps]
        inputs, low = self._shared("norm_low", arrays, shapes, _blocks(rows), numbers)
        return inputs, low

    def turn(
        self,
        heads: mx.array,
        rows: int,
        length: int,
        spans: mx.array,
        adapter: Two | None = None,
        longest: int | None = None,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """(T, (queries + 2 * keys) * size) -> query (rows, queries, length, size), and key and value likewise; the
        first two turned by their positions.

        Args:
            spans: as in Ready; positions are counted from there.
            adapter: low (T, rank) and second (rank, (queries + 2 * keys) * size): low @ second is added before.
            longest: tokens of an example, at most; the row's length if it is left out.
        """
        low, second, rank = _small(adapter, heads)
        shapes = [(rows, count, length, self.size) for count in (self.queries, self.keys, self.keys)]
        numbers = [rows, length, self.queries, self.keys, self.size, rank]
        angles = angles_of(self.turns.tobytes(), min(longest or length, length))
        arrays, kept = [heads, angles, spans, low, second], [angles, spans]
        query, key, value = self._shared("turn", arrays, shapes, _blocks(rows * length), numbers, kept)
        return query, key, value

    def turn_back(
        self,
        query: mx.array,
        key: mx.array,
        value: mx.array,
        spans: mx.array,
        second: mx.array | None = None,
        longest: int | None = None,
    ) -> tuple[mx.array, mx.array]:
        """Gradients of what `turn` gave -> that of its input, and that @ second.T (T, rank), if there is one.

        Of key and value, `attend_back` gives parts to be added up: (rows, parts * keys, length, size).
        """
        rows, _, length, _ = query.shape
        width, rank = (self.queries + 2 * self.keys) * self.size, 0 if second is None else len(second)
        angles = angles_of(self.turns.tobytes(), min(longest or length, length))
        arrays, kept = [query, key, value, angles, spans, query if second is None else second], [angles, spans]
        numbers = [rows, length, self.queries, self.keys, self.size, rank, key.shape[1] // self.keys]
        shapes = [(rows * length, width), (rows * length, rank) if rank else (1,)]  # MLX may not take an empty one
        heads, reduced = self._shared("turn_back", arrays, shapes, _blocks(rows * length), numbers, kept)
        return heads, reduced

    def attend(self, query: mx.array, key: mx.array, value: mx.array, spans: mx.array, window: int | None) -> Two:
        """What `turn` gave for one row of T tokens -> the attention's output (T, queries * size), causal, within
        examples and within the window, if any; and the logarithm to base 2 of each query's sum of weights (queries, T)
        in float32, for `attend_back`.

        Args:
            spans: as in Ready.
        """
        _, _, tokens, size = query.shape
        shapes = [(tokens, self.queries * size), (self.queries, tokens)]
        threads = _blocks_of_a_head(tokens) * self.queries * _ATTENTION_THREADS
        arrays = [query, key, value, spans]
        numbers = [tokens, self.queries, self.keys, min(window or tokens, tokens), self.scale]
        dtypes = [self.dtype, mx.float32]
        name = f"attend_{size}"
        mixed, sums = self._run(name, arrays, shapes, threads, numbers, dtypes, [spans], _ATTENTION_THREADS)
        return mixed, sums

    def attend_back(
        self,
        gradient: mx.array,
        query: mx.array,
        key: mx.array,
        value: mx.array,
        mixed: mx.array,
        sums: mx.array,
        spans: mx.array,
        window: int | None,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """The gradient of `attend`'s output, what went in and what came out -> gradients of query, and of key and value
        in parts to be added up: (1, keys * parts, T, size).
        """
        _, _, tokens, size = query.shape
        parts, whole = parts_of(tokens, self.queries, self.keys), [tokens, self.queries]
        threads = tokens * self.queries * size // 8
        name, dtypes, block = f"attend_means_{size}", [mx.float32], _ATTENTION_THREADS
        means = self._run(name, [mixed, gradient], [sums.shape], threads, whole, dtypes, block=block)[0]
        others = (1, self.keys * parts, tokens, size)
        blocks = _blocks_of_a_head(tokens) * (self.queries + 2 * self.keys * parts)
        d_query, d_key, d_value = self._run(
            f"attend_back_{size}",
            [query, key, value, spans, means, sums, gradient],
            [query.shape, others, others],
            blocks * _ATTENTION_THREADS,
            [*whole, self.keys, parts, min(window or tokens, tokens), self.scale],
            kept=[spans, means, sums],
            block=_ATTENTION_THREADS,
        )
        return d_query, d_key, d_value

    def factors_back(self, inputs: mx.array, reduced: mx.array, low: mx.array, gradient: mx.array) -> mx.array:
        """Gradients of an adapter's factors in one vector: reduced.T @ inputs, and behind it low.T @ gradient."""
        (tokens, inner), outer, rank = inputs.shape, gradient.shape[1], reduced.shape[1]
        blocks = (-(-inner // 64) + -(-outer // 64)) * (rank // _CHUNK)
        arrays, numbers = [inputs, reduced, low, gradient], [tokens, inner, outer, rank]
        return self._shared("factors_back", arrays, [(rank * (inner + outer),)], blocks, numbers)[0]

    def softmax(self, scores: mx.array, window: int | None) -> mx.array:
        """Scores (rows, kv heads, repeats * length, length) -> weights, causal and within the window, if any."""
        length = scores.shape[-1]
        rows = scores.size // length
        numbers = [rows, length, window or 0, self.scale]
        return self._run("softmax", [scores], [scores.shape], rows * _WARP, numbers)[0]

    def softmax_back(self, weights: mx.array, gradient: mx.array) -> mx.array:
        """The gradient of weights -> that of the scores."""
        length = weights.shape[-1]
        rows = weights.size // length
        arrays = [weights, gradient]
        numbers = [rows, length, self.scale]
        return self._run("softmax_back", arrays, [weights.shape], rows * _WARP, numbers)[0]

    def norm_back(
        self,
        state: mx.array,
        weight: mx.array,
        gradient: mx.array,
        rest: mx.array,
        eps: float,
        adapter: Two | None = None,
    ) -> mx.array:
        """rest + the gradient of an RMSNorm's input; all (T, width) but the weight.

        Args:
            adapter: reduced (T, rank) and first (rank, width): reduced @ first is added to the gradient before.
        """
        reduced, first, rank = _small(adapter, gradient)
        arrays, (rows, width) = [state, weight, gradient, rest, reduced, first], state.shape
        numbers = [rows, width, rank, eps]
        return self._shared("norm_back", arrays, [state.shape], _blocks(rows), numbers)[0]

    def gates_back(self, gradient: mx.array, gates: mx.array) -> mx.array:
        """The gradient (T, inner) of silu(gate) * up -> that of gates (T, 2 * inner), gate and up side by side."""
        rows, inner = gradient.shape
        threads = gradient.size // 8
        return self._run("gates_back", [gradient, gates], [gates.shape], threads, [rows, inner])[0]

    def _shared(
        self,
        name: str,
        arrays: list[mx.array],
        shapes: Sequence[Sequence[int]],
        blocks: int,
        numbers: Sequence[int | float],
        kept: Sequence[mx.array] = (),
    ) -> list[mx.array]:
        """Call a kernel whose blocks are of _THREADS that share what they read."""
        return self._run(name, arrays, shapes, blocks * _THREADS, numbers, kept=kept, block=_THREADS)


def parts_of(tokens: int, queries: int, keys: int) -> int:
    """In how many parts `attend_back` gives the gradients of a key's and a value's head: as few as keep a GPU busy.

    Args:
        queries, keys: numbers of heads.
    """
    repeats, blocks = queries // keys, _blocks_of_a_head(tokens) * keys
    enough = (one for one in range(1, repeats) if repeats % one == 0 and blocks * one >= _ENOUGH_BLOCKS)
    return next(enough, repeats)


def spans_of(rows: int, length: int) -> mx.array:
    """Of examples that lie one after another and are as long as each other, as Ready has them: (2, rows * length)."""
    return _spans(rows, length)


@cache
def _spans(rows: int, length: int) -> mx.array:
    firsts = np.repeat(np.arange(rows, dtype=np.int32) * length, length)
    return mx.array(np.stack([firsts, firsts + length]))


def _blocks_of_a_head(tokens: int) -> int:
    return -(-tokens // _OWN)


def _blocks(tokens: int) -> int:
    """Of a kernel whose blocks take several tokens each."""
    return -(-tokens // _TOKENS)


def _small(adapter: Two | None, other: mx.array) -> tuple[mx.array, mx.array, int]:
    """An adapter's parts and its rank; without one, any arrays, of which nothing is read, and 0."""
    return (other, other, 0) if adapter is None else (*adapter, adapter[0].shape[1])


def layer_kernels(attention: Any, size: int, widths: Sequence[int], dtype: mx.Dtype) -> LayerKernels | None:
    """For a layer's attention as mlx-lm has it; None where there is no CUDA device, or heads are turned otherwise.

    Args:
        size: of a head; widths: of the layer's states, outer and inner.

    Warns where there is one and the kernels cannot be compiled.
    """
    name, rope = type_name(dtype), attention.rope
    general = kernels_for(dtype, widths) if _turns(rope, size) else None
    binaries = None if general is None else compiled(layer_names(name, size), name)
    if general is None or binaries is None:
        return None
    heads, keys, scale = attention.n_heads, attention.n_kv_heads, float(attention.scale)
    return LayerKernels(dtype, {**general.binaries, **binaries}, heads, keys, size, turns_of(rope), scale)


def will_attend(attention: Any, size: int, widths: Sequence[int], dtype: mx.Dtype) -> bool:
    """Whether `layer_kernels` will have some that attend, unless their compilation fails, for which it would wait."""
    fits = usable(dtype) and not any(width % 8 for width in widths) and _turns(attention.rope, size)
    return fits and size in SIZES and type_name(dtype) in PRODUCTS and attends()


def _turns(rope: nn.Module, size: int) -> bool:
    """Whether `turn` turns heads of a size like this."""
    return not rope.traditional and rope.dims == size and size % 8 == 0


def turns_of(rope: nn.Module) -> NDArray[np.float64]:
    """Of an nn.RoPE or a Llama3RoPE: each pair's angle at position 1, (dims / 2,)."""
    if isinstance(rope, Llama3RoPE):
        return 1 / np.array(rope._freqs, dtype=np.float64)
    powers = np.arange(0, rope.dims, 2, dtype=np.float64) / rope.dims
    scaled: NDArray[np.float64] = rope.scale * float(rope.base) ** -powers
    return scaled


def angles_of(turns: bytes, length: int) -> mx.array:
    """Sines and cosines of each pair's angle, (positions, 2, size / 2) in float32, for at least so many positions.

    Args:
        turns: the bytes of LayerKernels.turns; all layers have the same, and the same table.
    """
    return _angles(turns, max(64, 1 << (length - 1).bit_length()))


@cache
def _angles(turns: bytes, positions: int) -> mx.array:
    angles = np.arange(positions)[:, None] * np.frombuffer(turns)
    return mx.array(np.stack([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32))
