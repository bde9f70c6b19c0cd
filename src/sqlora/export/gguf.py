"""Writes a model as GGUF, the one-file format of llama.cpp and of what is built on it (Ollama, LM Studio).

The result is what llama.cpp's own converter writes for the architecture it calls `llama`, Mistral's among others: its
rotary embedding turns the pairs (0, 1), (2, 3), … of each head, so the rows of q and k go back into the order in which
Mistral published them; vectors are float32; matrices keep their dtype.

mlx_lm.fuse --export-gguf is not used: what mlx-lm 0.32.2 writes llama.cpp refuses (a wrong type of the token types). It
also gives every piece of the vocabulary one score, so that merges come in another order than sentencepiece's, and takes
hidden_size / num_attention_heads for head_dim.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import sentencepiece
import torch

from sqlora.errors import SqloraError
from sqlora.export.checkpoint import FUSE_AGAIN, USE_LLAMA_CPP, open_checkpoint
from sqlora.model import context_length
from sqlora.progress import progress

_TYPES = {
    torch.float32: (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    torch.float16: (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    torch.bfloat16: (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}
_OUTSIDE_LAYERS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(folder: Path, out: Path, *, name: str) -> None:
    """Write the model in `folder` to the file `out`, one tensor at a time.

    Args:
        folder: config.json, safetensors and tokenizer.model, in Hugging Face's layout, not quantized.
        name: what programs show.

    Raises:
        SqloraError: if a file is missing or damaged, or the model is none that llama.cpp computes as `llama`.
    """
    checkpoint = open_checkpoint(folder)
    tokenizer = _read_tokenizer(folder, checkpoint.config["vocab_size"])
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_name(name)
    writer.add_file_type(_TYPES[checkpoint.dtype][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_architecture(writer, checkpoint.config)
    _add_tokenizer(writer, tokenizer)
    # Vectors are few, and llama.cpp computes with them in float32 only.
    dtypes = {name: torch.float32 if len(shape) == 1 else checkpoint.dtype for name, shape in checkpoint.shapes.items()}
    for tensor, shape in checkpoint.shapes.items():
        # Sizes in bytes, of which the writer makes shapes by the type: numpy has no bfloat16.
        in_bytes = (*shape[:-1], shape[-1] * dtypes[tensor].itemsize)
        kind = _TYPES[dtypes[tensor]][0]
        writer.add_tensor_info(gguf_name(tensor), in_bytes, np.dtype(np.uint8), math.prod(in_bytes), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with progress("gguf", total=len(dtypes), unit="tensor") as bar:
        for tensor, dtype in dtypes.items():
            weight = checkpoint.read(tensor).to(dtype)
            if tensor.endswith(("q_proj.weight", "k_proj.weight")):
                weight = join_rotary_pairs(weight, checkpoint.config["head_dim"])
            writer.write_tensor_data(weight.contiguous().view(torch.uint8).numpy())
            bar.update()
    writer.close()


def gguf_name(name: str) -> str:
    """`model.layers.3.self_attn.q_proj.weight` -> `blk.3.attn_q.weight`; KeyError for an unknown name."""
    if name in _OUTSIDE_LAYERS:
        return _OUTSIDE_LAYERS[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_IN_LAYER[rest.removesuffix('.weight')]}.weight"


def join_rotary_pairs(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Reorder each head's rows from (a0 a1 … b0 b1 …) to (a0 b0 a1 b1 …).

    Args:
        weight: (heads * head_dim, inputs).
        head_dim: even.
    """
    halves = weight.reshape(-1, 2, head_dim // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def _read_tokenizer(folder: Path, vocab_size: int) -> sentencepiece.SentencePieceProcessor:
    path = folder / "tokenizer.model"
    try:
        tokenizer = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    except (OSError, RuntimeError) as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else "no readable sentencepiece model"
        raise SqloraError(path, found=found, expected="a sentencepiece model", next_step=USE_LLAMA_CPP) from None
    if tokenizer.vocab_size() != vocab_size:
        raise SqloraError(
            path,
            found=f"{tokenizer.vocab_size()} pieces",
            expected=f"{vocab_size}, the vocab_size in config.json",
            # Fewer pieces are an embedding with spare rows, which fusing again leaves as it is.
            next_step=USE_LLAMA_CPP if tokenizer.vocab_size() < vocab_size else FUSE_AGAIN,
        )
    return tokenizer


def _add_architecture(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    # llama.cpp computes `llama` without a sliding window, as mlx-lm does, so the context ends where one would begin.
    writer.add_context_length(context_length(config))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: sentencepiece.SentencePieceProcessor) -> None:
    pieces = range(tokenizer.vocab_size())
    writer.add_tokenizer_model("llama")  # llama.cpp's name for sentencepiece's BPE
    writer.add_tokenizer_pre("default")
    writer.add_token_list([tokenizer.id_to_piece(index) for index in pieces])
    writer.add_token_scores([tokenizer.get_score(index) for index in pieces])
    writer.add_token_types([_token_type(tokenizer, index) for index in pieces])
    writer.add_bos_token_id(tokenizer.bos_id())
    writer.add_eos_token_id(tokenizer.eos_id())
    writer.add_unk_token_id(tokenizer.unk_id())
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(False)


def _token_type(tokenizer: sentencepiece.SentencePieceProcessor, index: int) -> gguf.TokenType:
    if tokenizer.is_unknown(index):
        return gguf.TokenType.UNKNOWN
    if tokenizer.is_control(index):
        return gguf.TokenType.CONTROL
    if tokenizer.is_byte(index):
        return gguf.TokenType.BYTE
    return gguf.TokenType.UNUSED if tokenizer.is_unused(index) else gguf.TokenType.NORMAL
