"""What results/training.json says of a run, and what the train stage says at its end."""

from __future__ import annotations

import sys
from pathlib import Path

from sqlora.environment import environment
from sqlora.train.run import Trained


def summarise(trained: Trained, predicted_peak: int, trainable: int, total: int) -> dict[str, object]:
    """The figures of a run.

    Args:
        predicted_peak: bytes of memory.
        trainable, total: parameters of the adapter, and of the base model.
    """
    first, last = trained.reports[0], trained.reports[-1]
    valid = [report for report in trained.reports if report.valid_loss is not None]
    rates = sorted(report.tokens_per_second for report in trained.reports if report.tokens_per_second is not None)
    return {
        "iterations": last.iteration,
        "published_iteration": trained.step,
        "final_train_loss": last.train_loss,
        "first_valid_loss": first.valid_loss,
        "best_valid_loss": min(report.valid_loss for report in valid if report.valid_loss is not None),
        "final_valid_loss": valid[-1].valid_loss,
        "final_valid_loss_completion": valid[-1].valid_loss_completion,
        "final_valid_loss_all": valid[-1].valid_loss_all,
        # The median, because the first steps are slower.
        "tokens_per_second": rates[len(rates) // 2],
        # Of one process, the others have as much; of all that worked on the run, if it was interrupted.
        "peak_memory_gb": max(*trained.peaks, *(report.peak_memory_gb for report in trained.reports)),
        "workers": len(trained.peaks),
        "frozen_peak_memory_gb": trained.frozen_peak,
        "frozen_seconds": round(trained.frozen_seconds, 1),
        "train_seconds": round(trained.train_seconds, 1),
        "validation_seconds": round(trained.validation_seconds, 1),
        "states_computed": trained.computed,
        "states_reused": trained.reused,
        "predicted_peak_memory_gb": round(predicted_peak / 1e9, 3),
        "trainable_parameters": trainable,
        "total_parameters": total,
        "environment": environment(),
    }


def announce(trained: Trained, out: Path) -> None:
    """Print which iteration's adapter is published in the folder `out`; warn on stderr if that one is untrained."""
    last = trained.reports[-1].iteration
    losses = {report.iteration: report.valid_loss for report in trained.reports if report.valid_loss is not None}
    print(f"published: iteration {trained.step:,} of {last:,}, validation loss {losses[trained.step]:.3f}", flush=True)
    if trained.step == 0:
        print(
            f"warning: {out}: the adapter is untrained, because no validation had a lower loss than the one before "
            "training. Lower train.learning_rate, or set train.keep: last to publish the last iteration's adapter.",
            file=sys.stderr,
        )
