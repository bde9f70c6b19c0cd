"""What is predicted of a run's memory, and what that makes of the process's peak."""

from __future__ import annotations

from dataclasses import dataclass

# Share of the live memory that operations issued ahead may take (docs/decisions.md); a CPU loses nothing.
ROOM = {"cpu": 0.1, "cuda": 0.15, "metal": 0.1}
# And bytes that they may take in any case: small runs issue as many operations ahead as large ones.
ROOM_AT_LEAST = {"cpu": 0, "cuda": 900_000_000, "metal": 0}
# How much of that room a GPU's peak takes (docs/benchmarks.md): on CUDA 1.0 to 1.7 of a share, the longer the run the
# more, because MLX's limit does not hold back a graph that has begun; and 0.5 to 1.1 of the bytes. Metal is not
# measured, and the middle is taken.
_REACHED = {"cuda": 4 / 3, "metal": 0.5}
_REACHED_AT_LEAST = {"cuda": 0.8, "metal": 0}

# MLX looks at its limit before an operation, whose arrays then come on top. Measured on a CPU in batches of 8 to 40:
# 14 to 18% above the live memory in all (docs/benchmarks.md).
_REACHED_ON_CPU = 0.15

# Bytes that the C library's heap keeps between blocks in use. Measured with the demo's base (docs/decisions.md): 50 to
# 67 MB, hardly depending on the settings. mallopt can switch that off, at a fifth of the speed.
HOLES = 60_000_000

Arrays = dict[str, int]  # what for -> bytes


@dataclass(frozen=True)
class Prediction:
    """phases: name -> the arrays of its largest moment; device: cpu, cuda or metal.

    What MLX does not hold and a CPU's memory includes, in bytes: outside, of the process before it works; host, of each
    phase: mapped files of states, and numpy's arrays on their way to MLX.
    """

    phases: dict[str, Arrays]
    device: str
    outside: int
    host: dict[str, int]

    @property
    def live(self) -> int:
        """Bytes that MLX has to hold at least."""
        return max(sum(arrays.values()) for arrays in self.phases.values())

    @property
    def limit(self) -> int:
        """MLX's memory limit for the run, in bytes."""
        return int(self.live + max(self.live * ROOM[self.device], ROOM_AT_LEAST[self.device]))

    @property
    def peak(self) -> int:
        """Bytes: of what MLX holds on a GPU, of the whole process on a CPU."""
        if self.device != "cpu":
            share = self.live * ROOM[self.device] * _REACHED[self.device]
            return int(self.live + max(share, ROOM_AT_LEAST[self.device] * _REACHED_AT_LEAST[self.device]))
        # The host is always ahead of a CPU, a hundred operations if it may: in a phase that needs little these take up
        # to as much again (measured: 0.5 to 1).
        held = max(
            min(int(self.live * (1 + _REACHED_ON_CPU)), sum(arrays.values()) * 7 // 4) + self.host.get(name, 0)
            for name, arrays in self.phases.items()
        )
        return held + HOLES + self.outside

    @property
    def largest(self) -> str:
        """The phase that decides."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    def __str__(self) -> str:
        return f"predicted peak memory: {self.peak / 1e9:.2f} GB, reached in the phase: {self.largest}"
