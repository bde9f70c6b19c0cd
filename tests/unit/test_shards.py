from __future__ import annotations

import json
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sqlora.convert.lazy import LazyTensors
from sqlora.convert.shards import Entry, plan_shards, write_shards
from sqlora.errors import SqloraError

STATE = {
    "b": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a": torch.arange(5).to(torch.bfloat16),
    "d": torch.arange(4).to(torch.uint32),
    "c": torch.ones(3, dtype=torch.float16),
}


def entries(state: dict[str, torch.Tensor]) -> dict[str, Sequence[Entry]]:
    return {name: [Entry(name, tuple(tensor.shape), tensor.dtype)] for name, tensor in state.items()}


def test_shards_keep_the_order_and_the_limit() -> None:
    assert plan_shards({"a": 4, "b": 4, "c": 4, "d": 20, "e": 1}, limit=10) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert plan_shards({"a": 10}, limit=10) == [["a"]]


def test_a_file_is_byte_by_byte_what_the_safetensors_library_writes(tmp_path: Path) -> None:
    write_shards(tmp_path, entries(STATE), lambda name: [STATE[name]])
    save_file(STATE, tmp_path / "theirs", metadata={"format": "mlx"})
    assert (tmp_path / "model-00001-of-00001.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_what_a_name_becomes_stays_in_one_file(tmp_path: Path) -> None:
    both = {"x": [Entry("b", (2, 3), torch.float32), Entry("c", (3,), torch.float16)]} | {
        "y": [Entry("a", (5,), torch.bfloat16)]
    }
    write_shards(tmp_path, both, lambda name: [STATE[e.name] for e in both[name]], limit=12)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    first, second = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    assert index == {"metadata": {"total_size": 40}, "weight_map": {"a": second, "b": first, "c": first}}
    assert torch.equal(load_file(tmp_path / first)["b"], STATE["b"])


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    alive: set[str] = set()
    most = 0

    def load(name: str) -> list[torch.Tensor]:
        nonlocal most
        tensor = torch.full((1000,), float(name))
        alive.add(name)
        weakref.finalize(tensor, alive.discard, name)
        most = max(most, len(alive))
        return [tensor]

    names = {str(n): [Entry(str(n), (1000,), torch.float32)] for n in range(10)}
    write_shards(tmp_path, names, load, limit=12_000)
    assert most <= 2  # the one before it goes when the next has come
    assert len(list(tmp_path.glob("*.safetensors"))) == 4


def test_a_byte_that_changes_after_it_was_written_is_found(tmp_path: Path) -> None:
    # Large enough that Python's buffer does not hold it back.
    state = {name: torch.arange(50_000, dtype=torch.float32) for name in "xyz"}

    def load(name: str) -> list[torch.Tensor]:
        if name == "z":
            with open(tmp_path / "model-00001-of-00001.safetensors", "r+b") as handle:
                handle.seek(1000)  # within x
                byte = handle.read(1)[0]
                handle.seek(1000)
                handle.write(bytes([byte ^ 16]))
        return [state[name]]

    with pytest.raises(SqloraError, match="other bytes than were written, in 1 of 3 tensors: x"):
        write_shards(tmp_path, entries(state), load)


def test_lazy_reading_gives_up_its_mappings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(STATE, tmp_path / "one")
    save_file({"e": torch.ones(2)}, tmp_path / "two")
    monkeypatch.setattr("sqlora.convert.lazy.REOPEN_BYTES", 0)
    tensors = LazyTensors([tmp_path / "one", tmp_path / "two"], "")
    assert tensors.shapes["b"] == (2, 3)
    assert tensors.dtypes["a"] == "BF16"
    for _ in range(2):
        for name, expected in (STATE | {"e": torch.ones(2)}).items():
            assert torch.equal(tensors.load(name), expected)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "one")
    save_file({"c": torch.ones(2)}, tmp_path / "two")
    with pytest.raises(SqloraError, match="a second tensor c, which one has as well"):
        LazyTensors([tmp_path / "one", tmp_path / "two"], "")
