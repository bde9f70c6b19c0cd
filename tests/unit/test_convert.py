from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_model import CONFIG, reference_logits, shapes, write_checkpoint

from sqlora.convert.checkpoint import expected_shapes
from sqlora.convert.huggingface import huggingface_name, split_rotary_pairs
from sqlora.convert.model import cast_weight, convert_model
from sqlora.errors import SqloraError

TOKENS = [1, 3, 500, 17, 17, 259, 300, 301, 2, 77, 404, 5, 260, 261, 262, 499, 0, 30, 31, 32]


def converted(tmp_path: Path, *, dtype: str = "float32", shard_bytes: int = 10**9, **changes: Any) -> Path:
    (tmp_path / "model").mkdir()
    convert_model(tmp_path / "source", tmp_path / "model", dtype=dtype, shard_bytes=shard_bytes)
    return tmp_path / "model"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_theta": 1_000_000.0, "sliding_window": 4096},
        {"n_heads": 6, "n_kv_heads": 1, "head_dim": 10},
        {"n_heads": 3, "n_kv_heads": 3, "head_dim": 16},
    ],
    ids=["grouped", "theta", "one key head", "head_dim = dim / n_heads"],
)
def test_mlx_gives_the_logits_of_an_independent_forward_pass(tmp_path: Path, changes: dict[str, Any]) -> None:
    import mlx.core as mx
    import mlx_lm

    weights = write_checkpoint(tmp_path / "source", **changes)
    folder = converted(tmp_path, shard_bytes=60_000)
    assert len(list(folder.glob("*.safetensors"))) > 3
    model, _ = mlx_lm.load(str(folder))
    logits = np.array(model(mx.array([TOKENS]))[0])
    expected = reference_logits(CONFIG | changes, weights, TOKENS).numpy()
    assert np.abs(logits - expected).max() < 1e-4
    assert np.ptp(expected) > 5  # large enough that the bar means something


def test_transformers_agrees_without_any_flag(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    weights = write_checkpoint(tmp_path / "source", rope_theta=5000.0, sliding_window=7)
    model = AutoModelForCausalLM.from_pretrained(converted(tmp_path), attn_implementation="eager")
    with torch.no_grad():
        logits = model(torch.tensor([TOKENS])).logits[0]
    expected = reference_logits(CONFIG | {"rope_theta": 5000.0, "sliding_window": 7}, weights, TOKENS)
    assert (logits - expected).abs().max() < 1e-4


def test_names_are_a_bijection() -> None:
    names = [huggingface_name(name) for name in shapes(CONFIG)]
    assert len(set(names)) == len(names)
    assert huggingface_name("layers.11.feed_forward.w2.weight") == "model.layers.11.mlp.down_proj.weight"
    with pytest.raises(KeyError):
        huggingface_name("layers.0.attention.wx.weight")


def test_rotary_pairs_of_two_heads() -> None:
    rows = torch.arange(8)[:, None].expand(8, 3)
    assert split_rotary_pairs(rows, 4)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_bfloat16_bits_survive(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path / "source", dtype=torch.bfloat16)
    result = tensors(converted(tmp_path, dtype="bfloat16"))
    assert len(result) == len(weights)
    for name, original in weights.items():
        back = result[huggingface_name(name)]
        assert back.dtype == torch.bfloat16
        if name.endswith(("wq.weight", "wk.weight")):
            half = back.reshape(-1, 2, CONFIG["head_dim"] // 2, CONFIG["dim"])
            back = torch.stack([half[:, 0], half[:, 1]], dim=2).reshape(original.shape)
        assert torch.equal(back.view(torch.int16), original.view(torch.int16))


def test_folder_holds_what_loaders_look_for(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source", dtype=torch.float16, sliding_window=4096)
    folder = converted(tmp_path, dtype="bfloat16", shard_bytes=60_000)
    config = json.loads((folder / "config.json").read_text())
    wanted = {"model_type": "mistral", "head_dim": 16, "num_key_value_heads": 2, "rope_theta": 10000.0}
    wanted |= {"sliding_window": 4096, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "eos_token_id": 2}
    assert config.items() >= wanted.items()
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = sorted(file.name for file in folder.glob("*.safetensors"))
    assert shards == [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    for name, shard in index["weight_map"].items():
        assert name in load_file(folder / shard)
    assert set(index["weight_map"]) == {huggingface_name(name) for name in shapes(CONFIG)}
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors(folder).values())
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1
    assert b'"format":"mlx"' in (folder / shards[0]).read_bytes()[:200]


def test_weights_that_float16_cannot_hold_are_named() -> None:
    good = cast_weight(torch.tensor([65504.0, 1e-3]), torch.float16, "x")
    assert good.tolist() == pytest.approx([65504.0, 1e-3], rel=1e-3)
    with pytest.raises(SqloraError, match=r"layers.0: found values up to 70000; expected at most 65504"):
        cast_weight(torch.tensor([1.0, -70000.0]), torch.float16, "layers.0")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    weights = write_checkpoint(tmp_path / "source")
    weights["layers.1.feed_forward.w2.weight"][3, 4] = value
    torch.save(weights, tmp_path / "source/consolidated.00.pth")
    with pytest.raises(SqloraError, match=r"tensor layers.1.feed_forward.w2.weight: found 1 of 3840 values that are"):
        converted(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("place", [0, 500, 4096, 9999])
def test_one_nan_anywhere_is_found(dtype: torch.dtype, place: int) -> None:
    tensor = torch.linspace(-1, 1, 10_000).to(dtype)
    tensor[place] = float("nan")
    with pytest.raises(SqloraError, match="1 of 10000 values"):
        cast_weight(tensor, dtype, "x")


def test_own_list_of_shapes_is_that_of_the_tests() -> None:
    from sqlora.convert.checkpoint import MistralConfig

    assert expected_shapes(MistralConfig(**CONFIG)) == shapes(CONFIG)
