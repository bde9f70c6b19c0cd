from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

from sqlora.mlx import mx, tree_flatten

import numpy as np
import pytest

from sqlora.count import count_lora_parameters, count_parameters
from sqlora.errors import SqloraError
from sqlora.model import add_adapter, load_base
from sqlora.params.lora import LoraParams
from sqlora.params.train import TrainParams
from sqlora.tokenizer import Encoded
from sqlora.train.batches import make_batch
from sqlora.train.loop import completion_loss, train_adapter, validation_loss
from sqlora.train.lora import adapter_config, add_lora

LORA = LoraParams(layers=2, rank=4, scale=10.0, dropout=0.0, targets=("q_proj", "v_proj"))
TRAIN = TrainParams(batch_size=2, iterations=30, learning_rate=2e-2, report_every=10, validate_every=15, seed=3)


def examples(count: int = 6) -> list[Encoded]:
    rng = np.random.default_rng(1)
    rows = []
    for number in range(count):
        prompt = [1, *rng.integers(3, 500, 5 + number).tolist()]
        rows.append(Encoded((*prompt, 40, 41, 42 + number % 2, 2), len(prompt)))
    return rows


def test_the_loss_is_the_mean_over_completion_tokens_whatever_the_padding(model_folder: Path) -> None:
    model, _ = load_base(model_folder)
    rows = examples()
    batch = make_batch(rows)
    total = count = 0.0
    for row in rows:  # one by one, without padding, from the whole model's logits
        logits = model(mx.array([row.tokens]))[0]
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        for place in range(row.prompt_tokens, len(row.tokens)):
            total -= logprobs[place - 1, row.tokens[place]].item()
            count += 1
    assert completion_loss(model, batch).item() == pytest.approx(total / count, abs=1e-5)
    other = dataclasses.replace(batch, inputs=np.where(batch.inputs == 0, 77, batch.inputs).astype(np.int32))
    assert completion_loss(model, other).item() == pytest.approx(completion_loss(model, batch).item(), abs=1e-6)


def test_only_the_adapter_of_the_top_layers_is_trained_and_counts_agree(model_folder: Path) -> None:
    model, config = load_base(model_folder)
    before = {name: np.array(value) for name, value in tree_flatten(model.parameters())}
    add_lora(model, LORA, seed=1)
    trainable = dict(tree_flatten(model.trainable_parameters()))
    assert {name.split(".")[2] for name in trainable} == {"1", "2"}
    assert sum(v.size for v in trainable.values()) == count_lora_parameters(
        config, layers=2, rank=4, targets=LORA.targets
    )
    assert sum(v.size for v in before.values()) == count_parameters(config)
    train_adapter(model, examples(), examples(2), TRAIN)
    after = {name.replace(".linear.", "."): np.array(value) for name, value in tree_flatten(model.parameters())}
    for name, value in before.items():
        assert np.array_equal(value, after[name]), name
    assert any(np.any(after[name] != 0) for name in trainable if name.endswith("lora_b"))


def test_training_lowers_the_loss_reports_it_and_the_adapter_reloads(model_folder: Path, tmp_path: Path) -> None:
    model, _ = load_base(model_folder)
    add_lora(model, LORA, seed=1)
    reports = train_adapter(model, examples(), examples(), TRAIN)
    assert [report.iteration for report in reports] == [0, 10, 15, 20, 30]
    assert [report.valid_loss is not None for report in reports] == [True, False, True, False, True]
    first, last = reports[0].valid_loss, reports[-1].valid_loss
    assert first is not None
    assert last is not None
    assert last < first - 1
    weights = dict(tree_flatten(model.trainable_parameters()))
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), weights)
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter_config(LORA)))
    fresh, _ = load_base(model_folder)
    add_adapter(fresh, tmp_path)
    assert validation_loss(fresh, examples(), 2) == pytest.approx(last, abs=1e-4)


def test_two_runs_with_one_seed_are_equal_and_another_seed_is_not(model_folder: Path) -> None:
    def run(seed: int) -> dict[str, np.ndarray]:
        model, _ = load_base(model_folder)
        lora = dataclasses.replace(LORA, dropout=0.2)
        add_lora(model, lora, seed=seed)
        train_adapter(model, examples(), examples(2), dataclasses.replace(TRAIN, iterations=5, seed=seed))
        return {name: np.array(value) for name, value in tree_flatten(model.trainable_parameters())}

    one, again, other = run(1), run(1), run(2)
    assert all(np.array_equal(one[name], again[name]) for name in one)
    assert not all(np.array_equal(one[name], other[name]) for name in one)


def test_validation_does_not_change_training(model_folder: Path) -> None:
    def run(validate_every: int) -> dict[str, np.ndarray]:
        model, _ = load_base(model_folder)
        add_lora(model, dataclasses.replace(LORA, dropout=0.3), seed=1)
        params = dataclasses.replace(TRAIN, iterations=6, validate_every=validate_every)
        train_adapter(model, examples(), examples(2), params)
        return {name: np.array(value) for name, value in tree_flatten(model.trainable_parameters())}

    often, never = run(1), run(100)
    assert all(np.array_equal(often[name], never[name]) for name in often)


def test_more_layers_than_there_are_is_an_error(model_folder: Path) -> None:
    model, _ = load_base(model_folder)
    with pytest.raises(SqloraError, match=r"lora\.layers: 4.*at most 3"):
        add_lora(model, dataclasses.replace(LORA, layers=4), seed=1)


def test_a_loss_that_is_not_finite_stops_the_run(model_folder: Path) -> None:
    model, _ = load_base(model_folder)
    add_lora(model, LORA, seed=1)
    model.model.norm.weight = model.model.norm.weight * math.nan
    with pytest.raises(SqloraError, match="validation: found a loss of nan"):
        train_adapter(model, examples(), examples(2), TRAIN)


def test_a_step_whose_loss_is_not_finite_is_named(model_folder: Path) -> None:
    model, _ = load_base(model_folder)
    add_lora(model, LORA, seed=1)
    with pytest.raises(SqloraError, match=r"at iteration \d+, training examples|validation: found"):
        train_adapter(model, examples(), examples(2), dataclasses.replace(TRAIN, learning_rate=math.inf))


def test_an_adapter_of_another_shape_is_an_error(model_folder: Path, tmp_path: Path) -> None:
    mx.save_safetensors(
        str(tmp_path / "adapters.safetensors"), {"model.layers.2.self_attn.q_proj.lora_a": mx.zeros((7, 4))}
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter_config(LORA)))
    model, _ = load_base(model_folder)
    with pytest.raises(SqloraError, match="does not fit the base model"):
        add_adapter(model, tmp_path)
