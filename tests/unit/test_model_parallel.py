"""Several consolidated.NN.pth: what model-parallel training writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_model import write_checkpoint

from sqlora.convert.model import convert_model
from sqlora.errors import SqloraError

# Which dimension is cut, as Meta and Mistral published it.
CUT = {"wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0, "output": 0, "wo": 1, "w2": 1, "tok_embeddings": 1}


def cut(folder: Path, weights: dict[str, torch.Tensor], shards: int) -> list[dict[str, torch.Tensor]]:
    """Write the weights as so many shards, in place of the one that is there."""
    states: list[dict[str, torch.Tensor]] = [{} for _ in range(shards)]
    for name, tensor in weights.items():
        dim = CUT.get(name.split(".")[-2])
        for number, state in enumerate(states):
            state[name] = tensor if dim is None else tensor.chunk(shards, dim)[number].clone()
    save(folder, states)
    return states


def save(folder: Path, states: list[dict[str, torch.Tensor]]) -> None:
    for number, state in enumerate(states):
        torch.save(state, folder / f"consolidated.{number:02d}.pth")


def problem(folder: Path, tmp_path: Path) -> str:
    (tmp_path / "to").mkdir()
    with pytest.raises(SqloraError) as caught:
        convert_model(folder, tmp_path / "to", dtype="float32")
    return str(caught.value)


@pytest.mark.parametrize("shards", [2, 4])
def test_shards_become_the_same_model_as_one_file(tmp_path: Path, shards: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqlora.convert.pickled.REOPEN_BYTES", 20_000)
    weights = write_checkpoint(tmp_path / "source")
    results = []
    for name in ("one", "several"):
        (tmp_path / name).mkdir()
        convert_model(tmp_path / "source", tmp_path / name, dtype="bfloat16")
        results.append(load_file(tmp_path / name / "model-00001-of-00001.safetensors"))
        cut(tmp_path / "source", weights, shards)
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_faults_of_all_shards_are_listed_at_once(tmp_path: Path) -> None:
    states = cut(tmp_path / "source", write_checkpoint(tmp_path / "source"), 2)
    del states[0]["norm.weight"]
    states[1]["layers.0.attention.wo.weight"] = torch.zeros(48, 64)
    states[1]["output.weight"] = states[1]["output.weight"].to(torch.int32)
    save(tmp_path / "source", states)
    message = problem(tmp_path / "source", tmp_path)
    assert "found 3 problems" in message
    for part in (
        "consolidated.00.pth: norm.weight is missing",
        "consolidated.01.pth: layers.0.attention.wo.weight has shape (48, 64) where params.json implies (48, 32)",
        "consolidated.01.pth: output.weight is torch.int32",
    ):
        assert part in message, part


def test_norms_that_differ(tmp_path: Path) -> None:
    states = cut(tmp_path / "source", write_checkpoint(tmp_path / "source"), 2)
    states[1]["layers.2.ffn_norm.weight"] = states[1]["layers.2.ffn_norm.weight"] + 1
    save(tmp_path / "source", states)
    assert "tensor layers.2.ffn_norm.weight: found values that differ" in problem(tmp_path / "source", tmp_path)


def test_a_shard_that_is_missing(tmp_path: Path) -> None:
    cut(tmp_path / "source", write_checkpoint(tmp_path / "source"), 4)
    (tmp_path / "source/consolidated.01.pth").unlink()
    message = problem(tmp_path / "source", tmp_path)
    assert "expected consolidated.00.pth, consolidated.01.pth, consolidated.02.pth" in message


def test_sizes_that_shards_do_not_divide(tmp_path: Path) -> None:
    states = cut(tmp_path / "source", write_checkpoint(tmp_path / "source"), 2)
    save(tmp_path / "source", [*states, states[0]])
    assert "3 shards do not divide the sizes in params.json" in problem(tmp_path / "source", tmp_path)
