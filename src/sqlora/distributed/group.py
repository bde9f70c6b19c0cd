"""The ranks of a run and what they tell each other; for a process alone, a group of one, all of it is free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from sqlora.mlx import mx

import numpy as np
from numpy.typing import NDArray

from sqlora.errors import SqloraError

T = TypeVar("T")


class Group:
    """All ranks call the same methods in the same order.

    Args:
        handle: of mlx.distributed; None for a process alone.
        disk: the ranks that see this rank's files, this one included.
        asked: whether this rank was asked to end.
    """

    def __init__(
        self,
        handle: mx.distributed.Group | None = None,
        disk: Sequence[int] = (0,),
        asked: Callable[[], bool] = lambda: False,
    ) -> None:
        self._handle = handle
        self.rank: int = handle.rank() if handle else 0
        self.size: int = handle.size() if handle else 1
        self.disk = list(disk)
        self._asked = asked
        self._flags: list[mx.array] = []
        self._stopping = False

    def sum(self, array: mx.array) -> mx.array:
        """Over all ranks, not computed yet; every rank gets the same bits."""
        return mx.distributed.all_sum(array, group=self._handle) if self._handle else array

    def totals(self, values: Sequence[float]) -> list[float]:
        """Sums over all ranks, in float32 if there are several."""
        if not self._handle:
            return list(values)
        return [float(value) for value in _received(self.sum(mx.array(list(values), dtype=mx.float32)))]

    def each(self, value: float) -> list[float]:
        """The value of every rank, by rank."""
        return self.totals([value if rank == self.rank else 0.0 for rank in range(self.size)])

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self._handle:  # alone, there is no need to start a device
            mx.eval(self.sum(mx.zeros(1)))

    def add_up(self, loss: mx.array, gradient: mx.array) -> tuple[mx.array, mx.array]:
        """A step's summed loss and gradient over all ranks; in the same message, whether a rank was asked to end."""
        if not self._handle:
            return loss, gradient
        # On its way first: the CUDA graph that holds a message may have to be made anew, so it had better be small.
        mx.async_eval(loss, gradient)
        size, asked = gradient.size, mx.array([float(self._asked())])
        total = self.sum(mx.concatenate([gradient, loss.reshape(1).astype(gradient.dtype), asked]))
        # Slices, for an index gathers, by a kernel that MLX compiles on a machine's first use.
        gradient, loss, asked = mx.split(total, [size, size + 1])
        # An array of its own: to read a part of another one, MLX moves all of that to the host, and the device waits.
        flag = asked > 0
        mx.async_eval(flag)  # with the step; computed later, it would wait for the steps that came after
        self._flags = [*self._flags[-1:], flag]
        return loss.squeeze(0), gradient

    def asked(self) -> bool:
        """Whether this rank itself was asked to end; others may not know yet."""
        return self._asked()

    def stop(self) -> bool:
        """Whether any rank was asked to end before the last step but one; all ranks get the same answer."""
        if not self._stopping and len(self._flags) == 2:
            self._stopping = bool(self._flags[0].item())
        return self._stopping

    def gather(self, value: T) -> list[T]:
        """Every rank's value, which is made of what JSON has, on every rank."""
        if not self._handle:
            return [value]
        data = json.dumps(value).encode("utf-8")
        lengths = mx.array([len(data) if rank == self.rank else 0 for rank in range(self.size)], dtype=mx.int64)
        ends = np.cumsum(_received(self.sum(lengths)))  # whole numbers: float32 holds them up to 16 million only
        buffer = np.zeros(int(ends[-1]), dtype=np.uint8)
        buffer[ends[self.rank] - len(data) : ends[self.rank]] = np.frombuffer(data, dtype=np.uint8)
        whole = _received(self.sum(mx.array(buffer)))
        return [json.loads(part.tobytes()) for part in np.split(whole, ends[:-1])]

    def first(self, value: T) -> T:
        """The first rank's value, which is made of what JSON has, on every rank."""
        if not self._handle:
            return value
        result: T = self.gather(value if self.rank == 0 else None)[0]  # type: ignore[assignment]
        return result

    def first_arrays(self, arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """The first rank's arrays, bit by bit, on every rank; those of the others do not matter."""
        if not self._handle:
            return dict(arrays)
        found: list[Any] = [[name, list(a.shape), str(a.dtype).rsplit(".", 1)[-1]] for name, a in arrays.items()]
        result = {}
        for name, shape, type_name in self.first(found):
            mine = arrays[name] if self.rank == 0 else mx.zeros(shape, dtype=getattr(mx, type_name))
            result[name] = self.from_rank(0, mine)
            mx.eval(result[name])
        return result

    def from_rank(self, rank: int, array: mx.array) -> mx.array:
        """A rank's array, bit by bit, on every rank, not computed yet; of the others' only shape and type matter."""
        if not self._handle or not array.size:
            return array
        # As whole numbers: a sum of others would lose the sign of a zero.
        whole = mx.uint8 if array.nbytes % 4 else mx.uint32
        mine = array.reshape(-1).view(whole) if self.rank == rank else mx.zeros(array.nbytes // whole.size, dtype=whole)
        return self.sum(mine).view(array.dtype).reshape(array.shape)

    def require_same(self, inputs: Mapping[str, Any]) -> None:
        """Refuse to work on different inputs.

        Args:
            inputs: name -> what JSON has.
        """
        if not self._handle:
            return
        every = self.gather({name: _code(one) for name, one in inputs.items()})
        for rank, codes in enumerate(every):
            different = [name for name in inputs if codes[name] != every[0][name]]
            if different:
                raise SqloraError(
                    f"rank {rank} of {self.size}",
                    found=f"another {' and another '.join(different)} than on rank 0",
                    expected="the same repository, params.yaml, artifacts and versions on every machine",
                    next_step="Copy the folder of rank 0's machine to the others, and install the same requirements.",
                )


def _received(total: mx.array) -> NDArray[Any]:
    mx.eval(total)  # NumPy alone would take what is there when a rank is gone, and MLX's error would be lost
    return np.array(total)


def _code(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8")).hexdigest()


ALONE = Group()
