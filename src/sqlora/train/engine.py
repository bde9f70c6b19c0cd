"""The training loop: it can be killed at any moment and goes on where the last checkpoint was, bit for bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from sqlora.mlx import mx, tree_unflatten

import numpy as np

from sqlora.distributed.group import ALONE, Group
from sqlora.errors import SqloraError
from sqlora.params.train import TrainParams
from sqlora.progress import progress
from sqlora.train.checkpoint import Checkpoint, Saver, flatten, load_together, steps
from sqlora.train.feed import Feed
from sqlora.train.gather import Gatherer
from sqlora.train.interruption import Interrupted
from sqlora.train.loss import counted_from
from sqlora.train.report import Meter, Report
from sqlora.train.step import Stepper
from sqlora.train.validation import Data, Validator


@dataclass(frozen=True)
class _Taken:
    """A step whose loss and norm are not read yet."""

    step: int
    loss: mx.array
    norm: mx.array
    chosen: list[int]
    counted: int


@dataclass(frozen=True)
class _Unread:
    """Some steps' numbers on their way from the device, (steps, 2), and the learning rate behind the last of them;
    tokens: how many, without padding, the steps went through; reported: whether a report is due.
    """

    steps: list[_Taken]
    numbers: mx.array
    rate: mx.array
    tokens: int
    reported: bool


class Engine:
    """One training run.

    Args:
        stepper: model and optimizer.
        folder: of the run's checkpoints.
        report: called with each report as it comes, and with those of an earlier process first.
        stop: asked before each step; a true answer, which all ranks get, saves and ends.
        asked: whether this rank was asked to end, asked between the batches of a validation.
        group: the ranks that share the work; the first one alone reads and writes checkpoints.

    Attributes:
        step: how many steps the adapter has seen.
        best_step: of them the number after which validation was best.
        reports: all of the run, those of earlier processes included.
        train_seconds, validation_seconds: of the run, earlier processes included as far as their checkpoints go.
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
        asked: Callable[[], bool] = lambda: False,
        group: Group = ALONE,
    ) -> None:
        self.step, self.best_step = 0, 0
        self.reports: list[Report] = []
        self.train_seconds = self.validation_seconds = 0.0
        self._timed = time.perf_counter()
        self._stepper, self._train, self._params = stepper, train, params
        self._folder, self._tell, self._stop, self._asked, self._group = folder, report, stop, asked, group
        self._best: dict[str, mx.array] = {}
        self._best_loss, self._worse = math.inf, 0
        self._saver = Saver(folder)
        self._taken: list[_Taken] = []
        self._tokens = 0  # of the steps in _taken
        self._unread: _Unread | None = None
        self._since = time.perf_counter()  # when the first step that is not reported yet began
        self._meter = Meter(params.loss)
        self._validator = Validator(valid, params.batch_size, group, few_shapes=stepper.compiled)
        gather = Gatherer(train, params, group, few_shapes=stepper.compiled)
        self._feed = Feed(gather, params.iterations, gather.step_bytes)

    def run(self) -> dict[str, mx.array]:
        """Train to the end; returns the adapter to publish, flat name -> array.

        Raises:
            SqloraError: a loss or gradient that is not finite; damaged checkpoints.
            Interrupted: `stop` or `asked` said so; a checkpoint is saved.
        """
        self._timed = time.perf_counter()
        self._resume()
        self._feed.begin(self.step)  # before a validation, which takes a while
        with self._saver, progress("train", total=self._params.iterations, unit="step") as bar:
            bar.update(self.step)
            if self._due(self._params.validate_every) and (not self.reports or self.reports[-1].iteration < self.step):
                self._pause()  # at the start, or where an earlier process was interrupted
            while self.step < self._params.iterations and not self._early():
                if self._stop():
                    self._save()
                    raise Interrupted
                self._advance(min(self._next_pause(), self._params.iterations), bar)
                self._pause()
                last = self.reports[-1]
                if last.train_loss is not None:
                    rate = f"{last.tokens_per_second:.0f} tokens/s, " if last.tokens_per_second else ""
                    bar.set_postfix_str(f"loss {last.train_loss:.3f}, {rate}{last.peak_memory_gb:.2f} GB")
        self._count_seconds()
        if self._params.keep == "best":
            return self._best
        return self._stepper.adapter()

    def _count_seconds(self) -> None:
        now = time.perf_counter()
        self.train_seconds += now - self._timed
        self._timed = now

    def _next_pause(self) -> int:
        every = (self._params.report_every, self._params.validate_every, self._params.checkpoint_every)
        return min(self.step - self.step % period + period for period in every)

    def _due(self, period: int) -> bool:
        return self.step == self._params.iterations or self.step % period == 0

    def _early(self) -> bool:
        return self._params.early_stopping is not None and self._worse >= self._params.early_stopping

    def _pause(self) -> None:
        """Validate, report and save, whatever is due after this many steps."""
        validates = self._due(self._params.validate_every)
        self._collect(reported=not validates and self._due(self._params.report_every))
        if validates:
            self._read()
            self._validate()
        if self.step and self._due(self._params.checkpoint_every):
            self._save()

    def _advance(self, until: int, bar: Any) -> None:
        """Take steps up to number `until`; the GPU works on one while the next is prepared."""
        if self._unread is None:
            self._since = time.perf_counter()
        while self.step < until:
            if not self._stepper.compiled:
                self._read()  # a CPU is through with a step when the host has issued it
            data = self._feed(self.step)
            rows = [self._train.examples[index] for index in data.chosen]
            counted = sum(len(row.tokens) - 1 - counted_from(row, self._params.loss) for row in rows)
            # Dropout is a function of seed and step, like the order, so that a resumed run repeats it.
            mx.random.seed(self._params.seed * 1_000_003 + self.step + 1 + (self._group.rank << 48))
            loss, norm = self._stepper.step(data.batches, counted)
            self._stepper.look_ahead(batch for one in self._feed.behind(self.step) for batch in one.batches)
            self._read()  # on a GPU not before it has something else to do
            # One of these two waits for the step before: the feed relies on it when it fills arrays again.
            if self._taken:
                mx.eval(self._taken[-1].loss)
            self._taken.append(_Taken(self.step + 1, loss, norm, data.chosen, counted))
            self._tokens += sum(len(row.tokens) for row in rows)
            self.step += 1
            bar.update()
            if self._stop():
                break

    def _collect(self, *, reported: bool) -> None:
        """Have the device hand over the numbers of the last steps, all at once because each reading costs time."""
        if not self._taken:
            return
        self._read()
        numbers = mx.stack([mx.stack([one.loss, one.norm]) for one in self._taken])
        mx.async_eval(numbers)  # before the next step, or it would be computed behind it
        rate = self._stepper.optimizer.learning_rate
        self._unread = _Unread(self._taken, numbers, rate, self._tokens, reported)
        self._taken, self._tokens = [], 0

    def _read(self) -> None:
        """Wait for the numbers that are on their way, check and report them."""
        unread, self._unread = self._unread, None
        if unread is None:
            return
        mx.eval(unread.numbers)  # which says if another rank is gone; NumPy would not
        self._check(unread.steps, np.array(unread.numbers).tolist())
        now = time.perf_counter()
        self._meter.took(unread.tokens, now - self._since)
        self._since = now
        if unread.reported:
            self._report(unread.steps[-1].step, unread.rate)

    def _check(self, taken: list[_Taken], numbers: list[list[float]]) -> None:
        for one, (loss, norm) in zip(taken, numbers, strict=True):
            if not math.isfinite(loss) or not math.isfinite(norm):
                good = self._last_good()
                raise SqloraError(
                    "params.yaml",
                    found=f"a loss of {loss} and a gradient of norm {norm} at iteration {one.step}, training "
                    f"examples {', '.join(str(index + 1) for index in one.chosen)} ({good})",
                    expected="finite numbers",
                    next_step="Lower train.learning_rate or lora.scale, or set train.max_gradient_norm; with float16, "
                    "try convert.dtype bfloat16.",
                )
            self._meter.add(loss, one.counted, norm)

    def _last_good(self) -> str:
        self._saver.finish()
        there = steps(self._folder)
        return f"the last good checkpoint is {there[-1].name}" if there else "no checkpoint"

    def _validate(self) -> None:
        started = time.perf_counter()
        try:
            completion, every = self._validator.losses(self._stepper, self._asked)
        except Interrupted:
            self._save()  # before this validation, which the next process then begins with
            raise
        if not math.isfinite(completion + every):
            raise SqloraError(
                "validation",
                found=f"a loss of {completion} after iteration {self.step} ({self._last_good()})",
                expected="a finite loss",
                next_step="Lower train.learning_rate or lora.scale; with float16, try convert.dtype bfloat16.",
            )
        loss = completion if self._params.loss == "completion" else every
        if loss < self._best_loss:
            self._best_loss, self.best_step, self._worse = loss, self.step, 0
            self._best = self._stepper.adapter()
            mx.eval(self._best)
        else:
            self._worse += 1
        seconds = time.perf_counter() - started
        self.validation_seconds += seconds
        self.train_seconds -= seconds
        self._report(self.step, self._stepper.optimizer.learning_rate, completion, every)

    def _report(
        self, step: int, learning_rate: mx.array, completion: float | None = None, every: float | None = None
    ) -> None:
        rate = float(f"{cast(float, learning_rate.item()):.6g}") if step else None
        report = self._meter.report(step, rate, completion, every)
        self.reports.append(report)
        self._tell(report)

    def _save(self) -> None:
        self._collect(reported=False)
        self._read()
        self._count_seconds()
        record = {
            "reports": [asdict(report) for report in self.reports],
            "since": self._meter.losses,
            "took": self._meter.taken,
            "best_loss": self._best_loss,
            "best_step": self.best_step,
            "worse": self._worse,
            "norm": self._meter.norm,
            "seconds": [self.train_seconds, self.validation_seconds],
        }
        if self._group.rank == 0:
            adapter, optimizer = self._stepper.adapter(), flatten(self._stepper.optimizer.state)
            self._saver.save(Checkpoint(self.step, adapter, optimizer, self._best, record))

    def _resume(self) -> None:
        checkpoint = load_together(self._folder, self._group)
        if checkpoint is None:
            return
        record = checkpoint.record
        self._stepper.restore(checkpoint.adapter, tree_unflatten(list(checkpoint.optimizer.items())))
        self._best = checkpoint.best
        self._best_loss, self.best_step, self._worse = record["best_loss"], record["best_step"], record["worse"]
        self._meter.restore(record["since"], record["norm"], *record["took"])
        self.train_seconds, self.validation_seconds = record["seconds"]
        self.step = checkpoint.step
        self.reports = [Report(**report) for report in record["reports"]]
        for report in self.reports:
            self._tell(report)
