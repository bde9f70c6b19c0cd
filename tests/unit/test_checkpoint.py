from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from tiny_model import CONFIG, random_weights, shapes, write_checkpoint

from sqlora.convert.checkpoint import MistralConfig, expected_shapes, read_config
from sqlora.convert.pickled import PickledWeights
from sqlora.errors import SqloraError

MISTRAL_7B = {
    "dim": 4096,
    "n_layers": 32,
    "head_dim": 128,
    "hidden_dim": 14336,
    "n_heads": 32,
    "sliding_window": 4096,
    "n_kv_heads": 8,
    "norm_eps": 1e-05,
    "vocab_size": 32000,
}


class RunsCode:
    """A pickle of this runs a command that makes the file named `canary`."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.canary}",)


def params(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "params.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def saved(tmp_path: Path, state: object) -> Path:
    torch.save(state, tmp_path / "consolidated.00.pth")
    return tmp_path / "consolidated.00.pth"


def problem_with(path: Path, config: dict = CONFIG) -> str:
    with pytest.raises(SqloraError) as caught:
        PickledWeights([path], MistralConfig(**config))
    assert caught.value.where == str(path)
    return caught.value.found


def test_config_of_mistral_7b(tmp_path: Path) -> None:
    config = read_config(params(tmp_path, MISTRAL_7B))
    assert config == MistralConfig(**MISTRAL_7B)
    assert config.rope_theta == 10000.0
    assert read_config(params(tmp_path, MISTRAL_7B | {"sliding_window": None})).sliding_window is None


def test_shapes_of_mistral_7b() -> None:
    expected = expected_shapes(MistralConfig(**MISTRAL_7B))
    assert expected == shapes(MISTRAL_7B)
    assert len(expected) == 291
    assert sum(torch.Size(shape).numel() for shape in expected.values()) == 7_241_732_096


def test_every_bad_field_is_listed_at_once(tmp_path: Path) -> None:
    fields = MISTRAL_7B | {"dim": "4096", "n_heads": True, "norm_eps": 0, "sliding_window": -1, "moe": {"experts": 8}}
    del fields["vocab_size"], fields["n_layers"]
    with pytest.raises(SqloraError) as caught:
        read_config(params(tmp_path, fields))
    found = caught.value.found
    assert found.startswith("7 problems: ")
    for part in (
        "dim is '4096'",
        "n_heads is True",
        "norm_eps is 0",
        "sliding_window is -1",
        "vocab_size is missing",
        "n_layers is missing",
        "moe is not a field",
    ):
        assert part in found


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("{", "no readable JSON"),
        ("[1]", "a JSON list"),
        (MISTRAL_7B | {"n_kv_heads": 5}, "n_heads 32 is no multiple of n_kv_heads 5"),
        (MISTRAL_7B | {"head_dim": 127}, "head_dim 127 is odd"),
        (MISTRAL_7B | {"n_layers": 10**12}, "n_layers is 1000000000000"),
        (MISTRAL_7B | {"rope_theta": None}, "rope_theta is None"),
        (MISTRAL_7B | {"norm_eps": float("nan")}, "norm_eps is nan"),
    ],
)
def test_unusable_config(tmp_path: Path, content: object, found: str) -> None:
    with pytest.raises(SqloraError) as caught:
        read_config(params(tmp_path, content))
    assert found in caught.value.found


def test_weights_are_opened_in_order_and_as_they_are(tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path, dtype=torch.bfloat16)
    opened = PickledWeights([tmp_path / "consolidated.00.pth"], MistralConfig(**CONFIG))
    assert list(opened.shapes) == list(expected_shapes(MistralConfig(**CONFIG)))
    assert all(torch.equal(opened.load(name), written[name]) for name in written)
    assert opened.load("norm.weight").dtype == torch.bfloat16


def test_every_bad_tensor_is_listed_at_once(tmp_path: Path) -> None:
    state: dict = dict(random_weights(CONFIG))
    del state["layers.1.attention.wk.weight"]
    state["layers.2.attention.wq.weight"] = torch.zeros(3, 4)
    state["norm.weight"] = torch.zeros(CONFIG["dim"], dtype=torch.int64)
    state["extra.weight"] = torch.zeros(1)
    state["output.weight"] = "text"
    found = problem_with(saved(tmp_path, state))
    assert found.startswith("5 problems: ")
    for part in (
        "layers.1.attention.wk.weight is missing",
        "layers.2.attention.wq.weight has shape (3, 4) where params.json implies (64, 48)",
        "norm.weight is torch.int64",
        "extra.weight is not a tensor of this architecture",
        "output.weight is no dense tensor",
    ):
        assert part in found


def test_a_long_list_of_bad_tensors_is_cut(tmp_path: Path) -> None:
    found = problem_with(saved(tmp_path, random_weights(CONFIG)), CONFIG | {"dim": 50})
    assert found.startswith("30 problems: ")
    assert found.endswith("; and 20 more")


def test_config_with_far_more_layers_than_tensors(tmp_path: Path) -> None:
    found = problem_with(saved(tmp_path, random_weights(CONFIG)), CONFIG | {"n_layers": 9_000_000})
    assert "fewer than params.json has layers" in found


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    found = problem_with(saved(tmp_path, random_weights(CONFIG) | {"norm.weight": RunsCode(canary)}))
    assert "nothing was run" in found
    (tmp_path / "consolidated.00.pth").write_bytes(pickle.dumps(RunsCode(canary)))
    problem_with(tmp_path / "consolidated.00.pth")
    assert not canary.exists()
    pickle.loads(pickle.dumps(RunsCode(canary)))  # the bait does work
    assert canary.exists()


def test_damaged_weights(tmp_path: Path) -> None:
    path = saved(tmp_path, random_weights(CONFIG))
    whole = path.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert problem_with(path)
    path.write_bytes(b"<!doctype html>" * 1000)
    assert problem_with(path)
    path.unlink()
    assert problem_with(path) == "no such file"


def test_a_checkpoint_that_is_no_dictionary(tmp_path: Path) -> None:
    assert problem_with(saved(tmp_path, torch.zeros(3))) == "a Tensor instead of tensors by name"
