"""Trains a LoRA adapter on the train split."""

from __future__ import annotations

import json
from pathlib import Path

from sqlora.mlx import mx

from sqlora.count import count_adapter_parameters, count_parameters
from sqlora.distributed.launch import launched
from sqlora.distributed.rank import joined
from sqlora.environment import environment
from sqlora.params.lora import LoraParams
from sqlora.params.train import TrainParams
from sqlora.plan.check import expect
from sqlora.publish import publish_file, publish_folder
from sqlora.stage import run_stage
from sqlora.tokenizer import Tokenizer
from sqlora.train.curve import curve
from sqlora.train.data import encode, read_config
from sqlora.train.lora import adapter_config
from sqlora.train.run import Trained, train_adapter


def main(
    model: Path, examples: Path, valid: Path, out: Path, metrics: Path, loss: Path, lora: LoraParams, train: TrainParams
) -> None:
    """Write the adapter folder `out`, the summary `metrics` (JSON) and, while training, the curve `loss` (CSV)."""
    if launched(train.workers, train.hostfile, train.backend):
        return
    with joined() as group:
        config = read_config(model)
        tokenizer = Tokenizer(model)
        train_examples, valid_examples = (encode(path, tokenizer, config) for path in (examples, valid))
        trainable = count_adapter_parameters(
            config, adapter=lora.adapter, layers=lora.layers, rank=lora.rank, targets=lora.targets
        )
        print(f"{trainable:,} trainable parameters beside {count_parameters(config):,} of the base model")
        expected = expect(config, train_examples, valid_examples, lora, train, group)
        print(expected)
        with curve(loss, wanted=group.rank == 0) as report:
            trained = train_adapter(model, train_examples, valid_examples, lora, train, report=report, group=group)
        if group.rank:
            return
        with publish_folder(out) as folder, publish_file(metrics) as metrics_file:
            mx.save_safetensors(str(folder / "adapters.safetensors"), trained.adapter, metadata={"format": "mlx"})
            (folder / "adapter_config.json").write_text(json.dumps(adapter_config(lora), indent=2) + "\n")
            summary = summarise(trained) | {
                "predicted_peak_memory_gb": round(expected.peak / 1e9, 3),
                "trainable_parameters": trainable,
                "total_parameters": count_parameters(config),
                "environment": environment(),
            }
            metrics_file.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")


def summarise(trained: Trained) -> dict[str, object]:
    """What results/training.json says of the run."""
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
        "peak_memory_gb": max(trained.peaks),  # of one process, the others have as much
        "workers": len(trained.peaks),
        "frozen_seconds": round(trained.frozen_seconds, 1),
        "train_seconds": round(trained.train_seconds, 1),
        "validation_seconds": round(trained.validation_seconds, 1),
        "states_computed": trained.computed,
        "states_reused": trained.reused,
    }


if __name__ == "__main__":
    run_stage(main)
