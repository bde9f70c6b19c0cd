"""On CUDA a machine's first training run compiles none of MLX's kernels, which take three seconds each.

MLX compiles what gathers or scatters, and elementwise operations that `mx.compile` made one of. The graphs of a run are
listed here, on a CPU, with what MLX's CUDA build has kernels for as one operation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sqlora.mlx import mx

import numpy as np
import pytest
from mlx_lm.models import llama
from train_params import train_params

from sqlora.distributed.group import Group
from sqlora.params.lora import LoraParams
from sqlora.tokenizer import Encoded
from sqlora.train import attention, fused
from sqlora.train.buckets import Planned
from sqlora.train.cuda import kernels, layers
from sqlora.train.feed import Ready, transfer
from sqlora.train.layer import Layer
from sqlora.train.lora import add_lora
from sqlora.train.loss import make_batch
from sqlora.train.step import Stepper
from sqlora.train.upper import Upper, embed

WIDTH = 64
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TYPES = {mx.float32: np.float32, mx.float16: np.float16, mx.bfloat16: np.uint16}


def standing_for(shape: Sequence[int], dtype: mx.Dtype, inputs: Sequence[mx.array]) -> mx.array:
    """An array that depends on others by no operation that anyone looks for."""
    return mx.depends([mx.zeros(shape, dtype=dtype)], list(inputs))[0]


@pytest.fixture(autouse=True)
def _as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def called(self: Any, name: str, arrays: Any, shapes: Any, *_: Any, dtypes: Any = (), **__: Any) -> list[mx.array]:
        wanted = list(dtypes) or [self.dtype] * len(shapes)
        return [standing_for(shape, dtype, arrays) for shape, dtype in zip(shapes, wanted, strict=True)]

    def like_the_first(first: mx.array, *others: Any, **_: Any) -> mx.array:
        return standing_for(first.shape, first.dtype, [first, *(one for one in others if isinstance(one, mx.array))])

    def one_of_each_row(logits: mx.array, targets: mx.array) -> mx.array:
        return mx.depends([logits[:, :1].reshape(-1)], [targets])[0]

    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(kernels, "has_cuda", lambda: True)
    for module in (kernels, layers):
        monkeypatch.setattr(module, "compiled", lambda names, _: dict.fromkeys(names, b""))
    monkeypatch.setattr(kernels.Kernels, "_run", called)
    for name in ("rms_norm", "rope", "scaled_dot_product_attention"):
        monkeypatch.setattr(mx.fast, name, like_the_first)
    monkeypatch.setattr(mx.fast, "cross_entropy", one_of_each_row)


@pytest.fixture
def compiled_by_mlx(tmp_path: Path) -> Callable[..., set[str]]:
    def found(*outputs: mx.array) -> set[str]:
        path = tmp_path / "graph.dot"
        mx.export_to_dot(str(path), *outputs)
        operations = set(re.findall(r'\[label ="([^"]+)", shape=rectangle\]', path.read_text()))
        assert operations, "nothing to look at"
        return {name for name in operations if re.match("Compiled|Gather|Scatter", name)}

    return found


def make(
    dtype: mx.Dtype = mx.bfloat16, *, frozen: int = 1, tied: bool = False, **changes: Any
) -> tuple[Stepper, Ready]:
    """A compiled stepper of a model of three layers, and a batch."""
    targets, counted = changes.pop("targets", ("q_proj", "v_proj")), changes.pop("counted", "all")
    packed = changes.pop("packed", False)
    arguments = llama.ModelArgs(
        model_type="llama",
        hidden_size=WIDTH,
        num_hidden_layers=3,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        rms_norm_eps=1e-5,
        vocab_size=512,
        tie_word_embeddings=tied,
    )
    upper = Upper(llama.Model(arguments), frozen)
    upper.set_dtype(dtype)
    mx.eval(upper.parameters())  # or how they are drawn is part of the graphs
    upper.freeze()
    upper.checkpointing = changes.get("gradient_checkpointing", False)
    lora = LoraParams("lora", 3 - frozen, 8, 10.0, 0.0, targets)
    add_lora(upper, lora, seed=1)
    stepper = Stepper(upper, lora, train_params(**changes), compiled=True, fused=True)
    examples = [Encoded(tuple(range(3 + number, 15 + number)), 6) for number in range(2)]

    def inputs(chosen: Sequence[int], starts: Sequence[int], tokens: int) -> np.ndarray:
        return np.zeros((tokens, WIDTH), dtype=TYPES[dtype]) if frozen else np.zeros(tokens, dtype=np.int32)

    planned = Planned([0, 1], 26, 1, 0, packed=True) if packed else Planned([0, 1], 16, 2, 0)
    return stepper, transfer([make_batch(examples, planned, inputs, counted)])[0]


@pytest.mark.parametrize("dtype", list(TYPES), ids=str)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"frozen": 0},
        {"gradient_checkpointing": True, "tied": True},
        {"targets": ALL},
        {"optimizer": "adamw", "schedule": "cosine", "warmup": 5, "max_gradient_norm": 1.0},
        {"counted": "completion"},
        {"optimizer": "adam", "schedule": "linear", "gradient_accumulation": 2},
    ],
    ids=lambda changes: ", ".join(changes) or "as it comes",
)
def test_a_step_and_a_validation(
    changes: dict[str, Any], dtype: mx.Dtype, compiled_by_mlx: Callable[..., set[str]]
) -> None:
    stepper, batch = make(dtype, **changes)
    batches = [batch] * changes.get("gradient_accumulation", 1)
    assert not compiled_by_mlx(*stepper._summed(batches))
    assert not compiled_by_mlx(*stepper._model.losses(stepper._vector, batch))
    sums = standing_for((), mx.float32, []), standing_for(stepper._vector.shape, mx.float32, [])
    updated = stepper._update(*sums, mx.array([8.0, 0.125]))
    state = [value for value in stepper.optimizer.state.values() if isinstance(value, mx.array)]
    assert not compiled_by_mlx(*updated, stepper._vector, *state, *stepper.optimizer.state["adapter"].values())


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize(
    "changes", [{}, {"counted": "completion", "gradient_checkpointing": True, "frozen": 0}], ids=str
)
def test_examples_one_after_another(
    changes: dict[str, Any], dtype: mx.Dtype, compiled_by_mlx: Callable[..., set[str]]
) -> None:
    stepper, batch = make(dtype, packed=True, **changes)
    assert stepper.packs
    assert batch.spans is not None
    assert not compiled_by_mlx(*stepper._summed([batch]))
    assert not compiled_by_mlx(*stepper._model.losses(stepper._vector, batch))


@pytest.mark.parametrize(("plain", "most"), [(8, 1024), (512, 16)])
def test_long_and_large_batches(
    monkeypatch: pytest.MonkeyPatch, plain: int, most: int, compiled_by_mlx: Callable[..., set[str]]
) -> None:
    for module in (attention, fused):
        monkeypatch.setattr(module, "PLAIN_ATTENTION", plain)
    monkeypatch.setattr(layers, "MOST_TOKENS", most)
    stepper, batch = make()
    assert not compiled_by_mlx(*stepper._summed([batch]))
    assert not compiled_by_mlx(*stepper._model.losses(stepper._vector, batch))


def test_the_frozen_pass(compiled_by_mlx: Callable[..., set[str]]) -> None:
    stepper, _ = make(frozen=0)
    model = stepper._model._upper.model.model  # type: ignore[attr-defined]
    block, state = model.layers[0], embed(model.embed_tokens, mx.zeros((2, 16), dtype=mx.int32))
    layer = Layer(block)
    assert not compiled_by_mlx(layer.forward(state.reshape(32, WIDTH), layer.frame((2, 16), state.dtype, None), {})[0])


def test_the_message_between_ranks(monkeypatch: pytest.MonkeyPatch, compiled_by_mlx: Callable[..., set[str]]) -> None:
    group = Group()
    group._handle = Any  # type: ignore[assignment]
    # As if nothing were computed yet, the flag too, which the group keeps.
    monkeypatch.setattr(mx, "async_eval", lambda *_: None)
    monkeypatch.setattr(group, "sum", lambda array: array)
    assert not compiled_by_mlx(*group.add_up(mx.ones(()), mx.ones(10)), *group._flags)


def test_what_would_be_compiled_is_found(compiled_by_mlx: Callable[..., set[str]]) -> None:
    some = mx.ones(4)
    assert compiled_by_mlx(some[1]) == {"Gather"}
    assert len(compiled_by_mlx(mx.compile(lambda x: mx.exp(x) * x)(some))) == 1
