"""What is written as GGUF, read back with the gguf package, against the checkpoint that Mistral's format holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, TokenType
from safetensors.torch import load_file, save_file
from sentencepiece import sentencepiece_model_pb2
from tiny_model import CONFIG, shapes, tokenizer_bytes, write_checkpoint

from sqlora.convert.model import convert_model
from sqlora.errors import SqloraError
from sqlora.export.gguf import gguf_name, join_rotary_pairs, write_gguf

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
NAMES = {
    "tok_embeddings": "token_embd",
    "norm": "output_norm",
    "output": "output",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "attention_norm": "attn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
    "ffn_norm": "ffn_norm",
}


def written(tmp_path: Path, *, dtype: str = "float32", **changes: Any) -> tuple[dict[str, torch.Tensor], GGUFReader]:
    """A random checkpoint's weights in Mistral's names and order, and its model as GGUF."""
    weights = write_checkpoint(tmp_path / "source", dtype=DTYPES[dtype], **changes)
    model = tmp_path / "model"
    model.mkdir()
    convert_model(tmp_path / "source", model, dtype=dtype)
    write_gguf(model, tmp_path / "model.gguf", name="tiny")
    return weights, GGUFReader(tmp_path / "model.gguf")


def llama_cpp_name(name: str) -> str:
    """Mistral's name of a tensor in llama.cpp's terms."""
    stem = name.removesuffix(".weight")
    if stem.startswith("layers."):
        _, layer, part = stem.split(".", 2)
        return f"blk.{layer}.{NAMES[part]}.weight"
    return f"{NAMES[stem]}.weight"


def value(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    assert field, key
    return field.contents()


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_are_those_of_the_checkpoint_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    weights, reader = written(tmp_path, dtype=dtype)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert tensors.keys() == {llama_cpp_name(name) for name in weights}
    for name, weight in weights.items():
        tensor = tensors[llama_cpp_name(name)]
        # llama.cpp turns the pairs that Mistral turns: rows of q and k are back where they came from.
        kept, kind = (weight.float(), "F32") if weight.ndim == 1 else (weight, KINDS[dtype])
        assert tensor.tensor_type.name == kind
        assert tensor.shape.tolist() == list(reversed(weight.shape))
        assert tensor.data.tobytes() == kept.contiguous().view(torch.uint8).numpy().tobytes(), name


@pytest.mark.parametrize(
    ("dtype", "changes", "expected"),
    [
        ("float32", {}, {"general.file_type": 0, "llama.context_length": 32768, "llama.rope.freq_base": 10000.0}),
        ("float16", {"rope_theta": 5000.0}, {"general.file_type": 1, "llama.rope.freq_base": 5000.0}),
        ("bfloat16", {"sliding_window": 4096}, {"general.file_type": 32, "llama.context_length": 4096}),
        ("float32", {"n_layers": 1, "head_dim": 12}, {"llama.block_count": 1, "llama.rope.dimension_count": 12}),
    ],
)
def test_metadata(tmp_path: Path, dtype: str, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    _, reader = written(tmp_path, dtype=dtype, **changes)
    head = (CONFIG | changes)["head_dim"]
    usual = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "general.quantization_version": 2,
        "llama.vocab_size": CONFIG["vocab_size"],
        "llama.embedding_length": CONFIG["dim"],
        "llama.feed_forward_length": CONFIG["hidden_dim"],
        "llama.attention.head_count": CONFIG["n_heads"],
        "llama.attention.head_count_kv": CONFIG["n_kv_heads"],
        "llama.attention.key_length": head,
        "llama.attention.value_length": head,
        "llama.rope.dimension_count": head,
        "llama.attention.layer_norm_rms_epsilon": float(np.float32(CONFIG["norm_eps"])),
    }
    for key, wanted in (usual | expected).items():
        assert value(reader, key) == wanted, key
    # Left alone, programs apply no scaling, no window and no template of a chat.
    names = set(reader.fields)
    assert not [name for name in names if "scaling" in name or "sliding" in name or "chat_template" in name]


def test_tokenizer(tmp_path: Path) -> None:
    _, reader = written(tmp_path)
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer_bytes())
    assert value(reader, "tokenizer.ggml.model") == "llama"
    assert value(reader, "tokenizer.ggml.tokens") == [piece.piece for piece in proto.pieces]
    assert value(reader, "tokenizer.ggml.scores") == [piece.score for piece in proto.pieces]
    # The numbers of the two formats' types of pieces are the same.
    assert value(reader, "tokenizer.ggml.token_type") == [piece.type for piece in proto.pieces]
    assert {TokenType(piece.type).name for piece in proto.pieces} == {"NORMAL", "UNKNOWN", "CONTROL", "BYTE"}
    special = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    flags = {"add_bos_token": True, "add_eos_token": False, "add_space_prefix": True, "remove_extra_whitespaces": False}
    for name, wanted in (special | flags).items():
        assert value(reader, f"tokenizer.ggml.{name}") == wanted, name


@pytest.fixture
def model(tmp_path: Path, model_folder: Path) -> Path:
    """A model to be changed."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def test_a_tied_embedding_is_written_once(model: Path, tmp_path: Path) -> None:
    edit_config(model, tie_word_embeddings=True)
    edit_weights(model, lambda weights: weights.pop("lm_head.weight"))
    write_gguf(model, tmp_path / "tied.gguf", name="tied")
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "tied.gguf").tensors}
    assert len(tensors) == len(shapes(CONFIG)) - 1
    assert "output.weight" not in tensors
    assert tensors["token_embd.weight"].tensor_type == GGMLQuantizationType.F32


def test_rotary_pairs_of_two_heads() -> None:
    rows = torch.arange(8)[:, None].expand(8, 3)
    assert join_rotary_pairs(rows, 4)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    rows = torch.arange(12)[:, None].expand(12, 1)
    assert join_rotary_pairs(rows, 6)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_unknown_names() -> None:
    assert gguf_name("model.layers.11.mlp.down_proj.weight") == "blk.11.ffn_down.weight"
    with pytest.raises(KeyError):
        gguf_name("model.layers.0.self_attn.q_norm.weight")


def edit_config(model: Path, **changes: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(model: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    for path in model.glob("*.safetensors"):
        weights = load_file(path)
        change(weights)
        save_file(weights, path)


def halve(weights: dict[str, torch.Tensor]) -> None:
    weights["lm_head.weight"] = weights["lm_head.weight"].half()


def cut(model: Path) -> None:
    path = next(model.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])


def other_vocabulary(model: Path) -> None:
    (model / "tokenizer.model").write_bytes(tokenizer_bytes(500))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: edit_config(m, model_type="qwen2"), "found model_type: 'qwen2'; expected a plain, unquantized"),
        (lambda m: edit_config(m, quantization={"bits": 4}), r"found quantization: .*Run dvc repro -f export/dvc.yaml"),
        (lambda m: edit_config(m, rope_scaling={"type": "linear"}), "found rope_scaling.*convert_hf_to_gguf.py"),
        (
            lambda m: edit_config(m, layer_types=["full_attention", "sliding_attention"]),
            "found layer_types with sliding",
        ),
        (lambda m: edit_config(m, rope_parameters={"rope_type": "yarn"}), "found rope_scaling"),
        (lambda m: (m / "config.json").write_text('{"model_type": "llama"}'), "no hidden_size, no intermediate_size"),
        (lambda m: (m / "config.json").write_text("{"), r"config.json: found no readable JSON"),
        (lambda m: (m / "config.json").unlink(), r"config.json: found no such file; expected a fused model"),
        (lambda m: (m / "tokenizer.model").unlink(), r"tokenizer.model: found no such file; expected a sentencepiece"),
        (lambda m: (m / "tokenizer.model").write_bytes(b"no"), "found no readable sentencepiece model"),
        (other_vocabulary, r"found 500 pieces; expected 512, the vocab_size in config.json.*convert_hf_to_gguf"),
        (
            lambda m: edit_weights(m, lambda w: w.pop("lm_head.weight")),
            "found no lm_head.weight; expected the 30 tensors",
        ),
        (lambda m: edit_weights(m, lambda w: w.update(x=torch.zeros(2))), "found an unknown x; expected"),
        (lambda m: edit_config(m, head_dim=8), r"q_proj.weight of shape \(64, 48\); .* and 7 more; expected"),
        (lambda m: edit_weights(m, halve), "found matrices of type F16, F32; expected"),
        (lambda m: [path.unlink() for path in m.glob("*.safetensors")], "found no model.embed_tokens.weight; .*more"),
        (cut, "found no readable safetensors"),
    ],
)
def test_what_is_wrong_with_a_model_is_said(
    model: Path, damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    damage(model)
    with pytest.raises(SqloraError, match=message):
        write_gguf(model, tmp_path / "out.gguf", name="x")
    assert not (tmp_path / "out.gguf").exists()
