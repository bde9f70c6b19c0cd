"""Rows of results/loss.csv, and what is measured for the next of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlora.memory import peak_memory


@dataclass(frozen=True)
class Report:
    """A row of loss.csv. Losses are means per counted token, in nats; None where nothing was measured.

    valid_loss: by the loss that is trained; valid_loss_completion and valid_loss_all: by both.
    """

    iteration: int
    train_loss: float | None
    valid_loss: float | None
    valid_loss_completion: float | None
    valid_loss_all: float | None
    learning_rate: float | None
    gradient_norm: float | None
    tokens_per_second: float | None
    peak_memory_gb: float

    def row(self) -> dict[str, object]:
        """For csv.DictWriter."""
        return {name: "" if value is None else value for name, value in asdict(self).items()}


class Meter:
    """What the steps since the last report gave.

    Args:
        kind: of the loss that is trained, `completion` or `all`.

    Attributes:
        norm: of the last step's gradient; None before the first step.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._losses: list[tuple[float, int]] = []
        self.norm: float | None = None
        self._tokens, self._seconds = 0, 0.0

    def add(self, loss: float, counted: int, norm: float) -> None:
        """A step's mean loss, the tokens that it counts, and the norm of its gradient."""
        self._losses.append((loss, counted))
        self.norm = norm

    def took(self, tokens: int, seconds: float) -> None:
        """How many tokens, without padding, some steps went through, and in what time."""
        self._tokens += tokens
        self._seconds += seconds

    @property
    def losses(self) -> list[tuple[float, int]]:
        """Of each step since the last report the loss and its counted tokens."""
        return list(self._losses)

    @property
    def taken(self) -> tuple[int, float]:
        """Tokens that the steps since the last report went through, and the seconds that it took."""
        return self._tokens, self._seconds

    def restore(self, losses: Sequence[Sequence[float]], norm: float | None, tokens: int, seconds: float) -> None:
        """Go on with what a checkpoint holds."""
        self._losses = [(loss, int(counted)) for loss, counted in losses]
        self.norm = norm
        self._tokens, self._seconds = tokens, seconds

    def report(
        self, step: int, learning_rate: float | None, completion: float | None = None, every: float | None = None
    ) -> Report:
        """The row of a step; the next one begins anew.

        Args:
            completion, every: the losses of a validation.
        """
        counted = sum(count for _, count in self._losses)
        loss = sum(loss * count for loss, count in self._losses) / counted if counted else None
        report = Report(
            step,
            _rounded(loss),
            _rounded(completion if self._kind == "completion" else every),
            _rounded(completion),
            _rounded(every),
            learning_rate,
            _rounded(self.norm),
            round(self._tokens / self._seconds, 1) if self._seconds else None,
            peak_memory(),
        )
        self._losses, self._tokens, self._seconds = [], 0, 0.0
        return report


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
