"""The training loop: it can be killed at any moment and goes on where the last checkpoint was, bit for bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlora.mlx import mx, tree_unflatten

import numpy as np

from sqlora.distributed.group import ALONE, Group
from sqlora.errors import SqloraError
from sqlora.memory import peak_memory
from sqlora.params.train import TrainParams
from sqlora.progress import progress
from sqlora.train.buckets import batch_indices
from sqlora.train.checkpoint import Checkpoint, flatten, load_together, save
from sqlora.train.division import divide, most_rows
from sqlora.train.feed import Feed
from sqlora.train.interruption import Interrupted
from sqlora.train.loss import Batch, counted_from, make_batch, most_counted
from sqlora.train.step import Stepper
from sqlora.train.validation import Data, validation_losses


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


@dataclass(frozen=True)
class _Taken:
    """A step whose loss and norm are not read yet."""

    step: int
    loss: mx.array
    norm: mx.array
    chosen: list[int]
    counted: int


class Engine:
    """One training run.

    Args:
        stepper: model and optimizer.
        folder: of the run's checkpoints.
        report: called with each report as it comes, and with those of an earlier process first.
        stop: asked before each step; a true answer, which all ranks get, saves and ends.
        group: the ranks that share the work; the first one alone reads and writes checkpoints.
    """

    def __init__(
        self,
        stepper: Stepper,
        train: Data,
        valid: Data,
        params: TrainParams,
        folder: Path,
        *,
        report: Callable[[Report], None],
        stop: Callable[[], bool] = lambda: False,
        group: Group = ALONE,
    ) -> None:
        self.stepper, self.train, self.valid, self.params = stepper, train, valid, params
        self.folder, self.report, self.stop, self.group = folder, report, stop, group
        self.reports: list[Report] = []
        self.best: dict[str, mx.array] = {}
        self.best_loss, self.best_step, self.worse = math.inf, 0, 0
        self.step = self.resumed_from = 0
        self.lengths = [len(example.tokens) - 1 for example in train.examples]
        self.rows = 0
        self.counted: dict[int, int] = {}
        if stepper.compiled:  # a graph a shape, so every batch of a bucket is filled up to one
            self.rows = most_rows(params.batch_size, params.gradient_accumulation, group.size)
            counts = [len(one.tokens) - 1 - counted_from(one, params.loss) for one in train.examples]
            self.counted = most_counted(list(zip(self.lengths, counts, strict=True)), train.buckets, self.rows)
        step_bytes = params.gradient_accumulation * params.batch_size * train.buckets[-1] * train.token_bytes
        self.feed = Feed(self._gather, params.iterations, step_bytes)
        self._since: list[tuple[float, int]] = []  # since the last report: loss, counted tokens
        self._tokens, self._seconds = 0, 0.0

    def run(self) -> dict[str, mx.array]:
        """Train to the end; returns the adapter to publish, flat name -> array.

        Raises:
            SqloraError: a loss or gradient that is not finite; damaged checkpoints.
            Interrupted: `stop` said so.
        """
        self._resume()
        if not self.reports:
            self._validate(0)
        params = self.params
        with progress("train", total=params.iterations, unit="step") as bar:
            bar.update(self.step)
            while self.step < params.iterations and not self._early():
                if self.stop():
                    self._save()
                    raise Interrupted
                self._advance(min(self._next_pause(), params.iterations), bar)
                if self._due(params.validate_every):
                    self._validate(self.step)
                elif self._due(params.report_every):
                    self._report(None, None)
                if self.step == params.iterations or self.step % params.checkpoint_every == 0:
                    self._save()
                last = self.reports[-1]
                if last.train_loss is not None:
                    rate = f"{last.tokens_per_second:.0f} tokens/s, " if last.tokens_per_second else ""
                    bar.set_postfix_str(f"loss {last.train_loss:.3f}, {rate}{last.peak_memory_gb:.2f} GB")
        if params.keep == "best":
            return self.best
        return self.stepper.adapter()

    def _next_pause(self) -> int:
        every = (self.params.report_every, self.params.validate_every, self.params.checkpoint_every)
        return min(self.step - self.step % period + period for period in every)

    def _due(self, period: int) -> bool:
        return self.step == self.params.iterations or self.step % period == 0

    def _early(self) -> bool:
        return self.params.early_stopping is not None and self.worse >= self.params.early_stopping

    def _advance(self, until: int, bar: Any) -> None:
        """Take steps up to number `until`; the GPU works on one while the next is prepared."""
        started = time.perf_counter()
        taken: list[_Taken] = []
        while self.step < until:
            data = self.feed(self.step)
            rows = [self.train.examples[index] for index in data.chosen]
            counted = sum(len(row.tokens) - 1 - counted_from(row, self.params.loss) for row in rows)
            # Dropout is a function of seed and step, like the order, so that a resumed run repeats it.
            mx.random.seed(self.params.seed * 1_000_003 + self.step + 1 + (self.group.rank << 48))
            loss, norm = self.stepper.step(data.batches, counted)
            if taken:
                mx.eval(taken[-1].loss)
            taken.append(_Taken(self.step + 1, loss, norm, data.chosen, counted))
            self._tokens += sum(len(row.tokens) for row in rows)
            self.step += 1
            bar.update()
            if self.stop():
                break
        self._check(taken)
        self._seconds += time.perf_counter() - started

    def _gather(self, step: int) -> tuple[list[Batch], list[int]]:
        """This rank's batches of a step, and the examples of all ranks."""
        params, train = self.params, self.train
        size, count = params.batch_size, params.gradient_accumulation
        numbers = range(step * count, (step + 1) * count)
        parts = [batch_indices(number, self.lengths, train.buckets, size, params.seed) for number in numbers]
        batches = [
            make_batch(
                train.examples,
                chosen,
                train.fetch,
                length=length,
                kind=params.loss,
                rows=self.rows,
                counted=self.counted.get(length, 0),
            )
            for chosen, length in divide(parts, self.lengths, train.buckets, size, self.group.rank, self.group.size)
        ]
        return batches, [index for part in parts for index in part]

    def _check(self, taken: list[_Taken]) -> None:
        """Read the losses of some steps, all at once because each reading waits for the device."""
        values = np.array(mx.stack([mx.stack([one.loss, one.norm]) for one in taken]))
        for one, (loss, norm) in zip(taken, values.tolist(), strict=True):
            if not math.isfinite(loss) or not math.isfinite(norm):
                good = f"the last good checkpoint is of step {self.step_saved}" if self.step_saved else "no checkpoint"
                raise SqloraError(
                    "params.yaml",
                    found=f"a loss of {loss} and a gradient of norm {norm} at iteration {one.step}, training "
                    f"examples {', '.join(str(index + 1) for index in one.chosen)} ({good})",
                    expected="finite numbers",
                    next_step="Lower train.learning_rate or lora.scale, or set train.max_gradient_norm; with float16, "
                    "try convert.dtype bfloat16.",
                )
            self._since.append((loss, one.counted))
            self._norm = norm

    step_saved = 0
    _norm: float | None = None

    def _validate(self, step: int) -> None:
        started = time.perf_counter()
        completion, every = validation_losses(self.stepper, self.valid, self.params.batch_size, self.group)
        if not math.isfinite(completion + every):
            raise SqloraError(
                "validation",
                found=f"a loss of {completion} after iteration {step}",
                expected="a finite loss",
                next_step="Lower train.learning_rate or lora.scale; with float16, try convert.dtype bfloat16.",
            )
        loss = completion if self.params.loss == "completion" else every
        if loss < self.best_loss:
            self.best_loss, self.best_step, self.worse = loss, step, 0
            self.best = self.stepper.adapter()
            mx.eval(self.best)
        else:
            self.worse += 1
        self.validation_seconds += time.perf_counter() - started
        self._report(completion, every)

    validation_seconds = 0.0

    def _report(self, completion: float | None, every: float | None) -> None:
        counted = sum(count for _, count in self._since)
        loss = sum(loss * count for loss, count in self._since) / counted if counted else None
        chosen = completion if self.params.loss == "completion" else every
        rate = self.stepper.optimizer.learning_rate
        report = Report(
            self.step,
            _rounded(loss),
            _rounded(chosen),
            _rounded(completion),
            _rounded(every),
            float(f"{float(rate.item()):.6g}") if self.step else None,
            _rounded(self._norm),
            round(self._tokens / self._seconds, 1) if self._seconds else None,
            peak_memory(),
        )
        self._since, self._tokens, self._seconds = [], 0, 0.0
        self.reports.append(report)
        self.report(report)

    def _save(self) -> None:
        record = {
            "reports": [asdict(report) for report in self.reports],
            "since": self._since,
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "worse": self.worse,
            "norm": self._norm,
        }
        if self.group.rank == 0:
            adapter = self.stepper.adapter()
            save(self.folder, Checkpoint(self.step, adapter, flatten(self.stepper.optimizer.state), self.best, record))
        self.step_saved = self.step

    def _resume(self) -> None:
        checkpoint = load_together(self.folder, self.group)
        if checkpoint is None:
            return
        record = checkpoint.record
        self.stepper.restore(checkpoint.adapter, tree_unflatten(list(checkpoint.optimizer.items())))
        self.best = checkpoint.best
        self.best_loss, self.best_step, self.worse = record["best_loss"], record["best_step"], record["worse"]
        self._since = [(loss, count) for loss, count in record["since"]]
        self._norm = record["norm"]
        self.step = self.step_saved = self.resumed_from = checkpoint.step
        self.reports = [Report(**report) for report in record["reports"]]
        for report in self.reports:
            self.report(report)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
