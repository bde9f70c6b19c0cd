"""Trains a LoRA adapter on the train split."""

from __future__ import annotations

import json
from pathlib import Path

from sqlora.mlx import mx

from sqlora.count import count_adapter_parameters, count_parameters
from sqlora.distributed.launch import launched
from sqlora.distributed.rank import joined
from sqlora.params.lora import LoraParams
from sqlora.params.train import TrainParams
from sqlora.plan.check import expect
from sqlora.publish import publish_file, publish_folder
from sqlora.runtime import cut_graphs
from sqlora.stage import run_stage
from sqlora.tokenizer import Tokenizer
from sqlora.train.curve import curve
from sqlora.train.data import encode, read_config
from sqlora.train.division import most_rows
from sqlora.train.lora import adapter_config
from sqlora.train.run import train_adapter
from sqlora.train.summary import announce, summarise


def main(
    model: Path, examples: Path, valid: Path, out: Path, metrics: Path, loss: Path, lora: LoraParams, train: TrainParams
) -> None:
    """Write the adapter folder `out`, the summary `metrics` (JSON) and, while training, the curve `loss` (CSV)."""
    cut_graphs(most_rows(train.batch_size, train.gradient_accumulation, train.workers))
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
            summary = summarise(trained, expected.peak, trainable, count_parameters(config))
            metrics_file.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
        announce(trained, out)


if __name__ == "__main__":
    run_stage(main)
