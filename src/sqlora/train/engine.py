"""The training loop: it can be killed at any moment and goes on where the last checkpoint was, bit for bit."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlora.mlx import mx, tree_unflatten

from sqlora.errors import SqloraError
from sqlora.memory import peak_memory
from sqlora.params.train import TrainParams
from sqlora.progress import progress
from sqlora.tokenizer import Encoded
from sqlora.train.buckets import batch_indices, bucket_of, validation_batches
from sqlora.train.checkpoint import Checkpoint, flatten, load_latest, save
from sqlora.train.loss import Batch, Fetch, make_batch
from sqlora.train.step import Stepper, number


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
class Data:
    """examples: encoded; fetch: gives what goes into the model; buckets: lengths of batches."""

    examples: Sequence[Encoded]
    fetch: Fetch
    buckets: Sequence[int]


class Interrupted(Exception):  # noqa: N818 - no error: somebody asked for it
    """The run was asked to end and has saved a checkpoint."""


class Engine:
    """One training run.

    Args:
        stepper: model and optimizer.
        folder: of the run's checkpoints.
        report: called with each report as it comes, and with those of an earlier process first.
        stop: asked before each step; a true answer saves and ends.
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
    ) -> None:
        self.stepper, self.train, self.valid, self.params = stepper, train, valid, params
        self.folder, self.report, self.stop = folder, report, stop
        self.reports: list[Report] = []
        self.best: dict[str, mx.array] = {}
        self.best_loss, self.best_step, self.worse = math.inf, 0, 0
        self.step = self.resumed_from = 0
        self.lengths = [len(example.tokens) - 1 for example in train.examples]
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
        running: tuple[int, mx.array, mx.array, list[int], int] | None = None
        while self.step < until:
            batches, chosen = self._batches(self.step)
            # Dropout is a function of seed and step, like the order, so that a resumed run repeats it.
            mx.random.seed(self.params.seed * 1_000_003 + self.step + 1)
            loss, norm = self.stepper.step(batches)
            if running:
                self._check(*running)
            running = (self.step + 1, loss, norm, chosen, sum(batch.counted for batch in batches))
            self._tokens += sum(batch.real_tokens for batch in batches)
            self.step += 1
            bar.update()
            if self.stop():
                break
        if running:
            self._check(*running)
        self._seconds += time.perf_counter() - started

    def _batches(self, step: int) -> tuple[list[Batch], list[int]]:
        params, train = self.params, self.train
        batches, every = [], []
        for part in range(params.gradient_accumulation):
            index = step * params.gradient_accumulation + part
            chosen = batch_indices(index, self.lengths, train.buckets, params.batch_size, params.seed)
            length = bucket_of(max(self.lengths[one] for one in chosen), train.buckets)
            batches.append(make_batch(train.examples, chosen, train.fetch, length=length, kind=params.loss))
            every += chosen
        return batches, every

    def _check(self, step: int, loss: mx.array, norm: mx.array, chosen: list[int], counted: int) -> None:
        values = [number(value) for value in (loss, norm)]
        if not all(math.isfinite(value) for value in values):
            good = f"the last good checkpoint is of step {self.step_saved}" if self.step_saved else "no checkpoint yet"
            raise SqloraError(
                "params.yaml",
                found=f"a loss of {values[0]} and a gradient of norm {values[1]} at iteration {step}, training "
                f"examples {', '.join(str(index + 1) for index in chosen)} ({good})",
                expected="finite numbers",
                next_step="Lower train.learning_rate or lora.scale, or set train.max_gradient_norm; with float16, try "
                "convert.dtype bfloat16.",
            )
        self._since.append((values[0], counted))
        self._norm = values[1]

    step_saved = 0
    _norm: float | None = None

    def _validate(self, step: int) -> None:
        started = time.perf_counter()
        sums, counts = [0.0, 0.0], [0, 0]
        lengths = [len(example.tokens) - 1 for example in self.valid.examples]
        for chosen, length in validation_batches(lengths, self.valid.buckets, self.params.batch_size):
            batch = make_batch(self.valid.examples, chosen, self.valid.fetch, length=length, kind="all")
            for which, value in enumerate(self.stepper.losses(batch)):
                sums[which] += value
            counts[0] += int(batch.answers.sum())
            counts[1] += batch.counted
        completion, every = (total / count for total, count in zip(sums, counts, strict=True))
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
        adapter = self.stepper.adapter()
        save(self.folder, Checkpoint(self.step, adapter, flatten(self.stepper.optimizer.state), self.best, record))
        self.step_saved = self.step

    def _resume(self) -> None:
        checkpoint, warnings = load_latest(self.folder)
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
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
