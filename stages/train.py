"""Trains a LoRA adapter on the train split."""

from __future__ import annotations

import csv
import json
from dataclasses import fields
from pathlib import Path

from sqlora.mlx import mx, tree_flatten

from sqlora.count import count_lora_parameters, count_parameters
from sqlora.errors import SqloraError
from sqlora.memory import peak_memory
from sqlora.model import context_length, load_base
from sqlora.params.lora import LoraParams
from sqlora.params.train import TrainParams
from sqlora.publish import publish_file, publish_folder
from sqlora.stage import run_stage
from sqlora.text import read_examples
from sqlora.tokenizer import Encoded, Tokenizer
from sqlora.train.loop import Report, train_adapter
from sqlora.train.lora import adapter_config, add_lora


def main(
    model: Path, examples: Path, valid: Path, out: Path, metrics: Path, loss: Path, lora: LoraParams, train: TrainParams
) -> None:
    """Write the adapter folder `out`, the summary `metrics` (JSON) and the curve `loss` (CSV)."""
    base, config = load_base(model)
    tokenizer = Tokenizer(model)
    train_examples, valid_examples = (encode(path, tokenizer, context_length(config)) for path in (examples, valid))
    add_lora(base, lora, train.seed)
    trainable = count_lora_parameters(config, layers=lora.layers, rank=lora.rank, targets=lora.targets)
    print(f"{trainable:,} trainable parameters beside {count_parameters(config):,} of the base model")
    reports = train_adapter(base, train_examples, valid_examples, train)
    with publish_folder(out) as folder, publish_file(metrics) as metrics_file, publish_file(loss) as loss_file:
        weights = dict(tree_flatten(base.trainable_parameters()))
        mx.save_safetensors(str(folder / "adapters.safetensors"), weights, metadata={"format": "mlx"})
        (folder / "adapter_config.json").write_text(json.dumps(adapter_config(lora), indent=2) + "\n")
        summary = {
            "iterations": train.iterations,
            "final_train_loss": reports[-1].train_loss,
            "final_valid_loss": reports[-1].valid_loss,
            "first_valid_loss": reports[0].valid_loss,
            "tokens_per_second": median_rate(reports),
            "peak_memory_gb": peak_memory(),
            "trainable_parameters": trainable,
            "total_parameters": count_parameters(config),
        }
        metrics_file.write_text(json.dumps(summary, indent=2) + "\n")
        with open(loss_file, "w", newline="") as handle:
            writer = csv.DictWriter(handle, [field.name for field in fields(Report)], lineterminator="\n")
            writer.writeheader()
            writer.writerows(report.row() for report in reports)


def encode(path: Path, tokenizer: Tokenizer, limit: int) -> list[Encoded]:
    """Tokenize a split; an example that the model cannot hold fails the stage."""
    encoded = [tokenizer.encode_example(example.prompt, example.completion) for example in read_examples(path)]
    for number, example in enumerate(encoded, 1):
        if len(example.tokens) > limit:
            raise SqloraError(
                f"{path}, line {number}",
                found=f"an example of {len(example.tokens)} tokens",
                expected=f"at most {limit}, the base model's context",
                next_step="Remove the example's table or its longest columns from the data's source.",
            )
    return encoded


def median_rate(reports: list[Report]) -> float:
    """Training tokens per second, without padding and validation; the median, because the first steps are slower."""
    rates = sorted(report.tokens_per_second for report in reports if report.tokens_per_second is not None)
    return rates[len(rates) // 2]


if __name__ == "__main__":
    run_stage(main)
