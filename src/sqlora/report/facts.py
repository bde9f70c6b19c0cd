"""The run card: what a run was made with and of, and what it took."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sqlora.params.lora import LoraParams
from sqlora.params.train import TrainParams
from sqlora.report.dataset import Part
from sqlora.report.results import Training

ADAPTERS = {"lora": "LoRA", "dora": "DoRA"}

Fact = tuple[str, str, str]  # name, value, remark


def run_card(params: Mapping[str, Any], training: Training, parts: Mapping[str, Part]) -> dict[str, list[Fact]]:
    """Heading -> facts; `params`: section of params.yaml -> its dataclass."""
    groups = {
        "Model and data": _model_and_data(params, training, parts),
        "Training": _training(params["lora"], params["train"], training),
        "Time and memory": time_and_memory(training),
        "Machine and versions": [(name, value, "") for name, value in training.environment],
    }
    return {heading: facts for heading, facts in groups.items() if facts}


def time_and_memory(training: Training) -> list[Fact]:
    """What training took; what an earlier version has not recorded is left out."""
    facts = [
        (label, duration(seconds), "")
        for label, seconds in (
            ("Frozen layers", training.frozen_seconds),
            ("Training steps", training.train_seconds),
            ("Validation", training.validation_seconds),
        )
        if seconds is not None
    ]
    facts.append(("Training speed", f"{training.tokens_per_second:,.0f}", "tokens a second"))
    facts.append(("Peak memory", f"{training.peak_memory_gb:.2f} GB", "measured while training"))
    predicted = training.predicted_peak_memory_gb
    if predicted is not None:
        facts.append(("Predicted", f"{predicted:.2f} GB", f"before the run{_off(training.peak_memory_gb, predicted)}"))
    return facts


def duration(seconds: float) -> str:
    """Such as `28.6 s`, `2 min 27 s` or `3 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def parameters(params: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Section -> (key, value as YAML has it)."""
    return {
        name: [(field.name, show(getattr(section, field.name))) for field in dataclasses.fields(section)]
        for name, section in params.items()
    }


def show(value: Any) -> str:
    """A parameter's value as YAML has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return ", ".join(map(show, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _model_and_data(params: Mapping[str, Any], training: Training, parts: Mapping[str, Part]) -> list[Fact]:
    model, convert, data, generate = (params[name] for name in ("model", "convert", "data", "generate"))
    quantized = f", {convert.quantize} bits in groups of {convert.group_size}" if convert.quantize else ""
    constrain = f"at most {generate.max_tokens} tokens, constraint: {generate.constrain}"
    guided = (generate.execution_guided or 1) > 1
    sizes = ", ".join(f"{parts[name].examples:,}" for name in parts)
    seed = f", seed {data.demo_seed}" if data.source == "demo" else ""
    return [
        ("Base model", show(model.source), model.checksum or ""),
        ("Size", short(training.total_parameters), f"parameters, {convert.dtype}{quantized}"),
        ("Data", show(data.source) + seed, data.checksum or ""),
        ("Examples", sizes, " / ".join(parts)),
        ("Decoding", "execution-guided" if guided else "greedy", constrain),
    ]


def _training(lora: LoraParams, train: TrainParams, training: Training) -> list[Fact]:
    layers = f"top {lora.layers} layers" if lora.layers > 1 else "top layer"
    share = training.trainable_parameters / training.total_parameters if training.total_parameters else 0.0
    batch = f"of batch {train.batch_size}" + f" × {train.gradient_accumulation}" * (train.gradient_accumulation > 1)
    ranks = f"{training.workers:,.0f}" if (training.workers or 1) > 1 else ""
    return [
        ("Adapter", f"{ADAPTERS[lora.adapter]}, rank {lora.rank}", f"on {', '.join(lora.targets)} of the {layers}"),
        ("Trainable", short(training.trainable_parameters), f"{share:.2%} of {short(training.total_parameters)}"),
        ("Iterations", f"{training.iterations:,}", f"{batch}, learning rate {train.learning_rate:g}"),
        *([("Processes", ranks, "in the last run of the stage")] if ranks else []),
        ("Training loss", f"{training.final_train_loss:.3f}", "at the end"),
        (
            "Validation loss",
            f"{training.final_valid_loss:.3f}",
            f"at the end, from {training.first_valid_loss:.3f} before training",
        ),
        *_published(training),
    ]


def _published(training: Training) -> list[Fact]:
    if training.published_iteration is None:
        return []
    remarks = ["untrained"] * (training.published_iteration == 0)
    if training.published_valid_loss is not None:
        remarks.append(f"validation loss {training.published_valid_loss:.3f}")
    iteration = f"iteration {training.published_iteration:,.0f} of {training.iterations:,.0f}"
    return [("Published", iteration, ", ".join(remarks))]


def _off(measured: float, predicted: float) -> str:
    if not predicted:
        return ""
    percent = round(100 * (measured / predicted - 1))
    return f"; measured {abs(percent)}% {'more' if percent > 0 else 'less'}" if percent else "; as measured"


def short(count: float) -> str:
    """A number of parameters as the reference prints it: 7,241.732M."""
    return f"{count / 1e6:,.3f}M"
