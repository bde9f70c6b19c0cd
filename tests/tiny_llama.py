"""Makes tiny random models in Hugging Face's format, with transformers' own code, and tokenizers of both kinds."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import tiny_model
import torch

VOCABULARY = 512


def write_model(
    folder: Path,
    kind: str = "llama",
    *,
    tokenizer: str = "bytes",
    dtype: torch.dtype = torch.float32,
    shard_size: str = "5GB",
    old_style: bool = False,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Write config.json, safetensors and a tokenizer.

    Args:
        kind: model_type, "llama" or "mistral".
        tokenizer: "bytes" (a byte-level BPE tokenizer.json, as SmolLM2's) or "sentencepiece" (a tokenizer.model).
        shard_size: of a weights file, in transformers' words.
        old_style: whether config.json is written as transformers did before version 5.
        changes: of the config.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    classes: dict[str, Any] = {"llama": (LlamaConfig, LlamaForCausalLM), "mistral": (MistralConfig, MistralForCausalLM)}
    config_class, model_class = classes[kind]
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 0 if tokenizer == "bytes" else 1,
        "eos_token_id": 0 if tokenizer == "bytes" else 2,
    }
    model = model_class(config_class(**fields | changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(values * 0.2 if parameter.ndim == 2 else 1 + values * 0.2)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    if old_style:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        rope = config.pop("rope_parameters")
        config |= {"rope_theta": rope.pop("rope_theta"), "torch_dtype": config.pop("dtype")}
        config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
        path.write_text(json.dumps(config))
    if tokenizer == "bytes":
        write_byte_tokenizer(folder)
    else:
        (folder / "tokenizer.model").write_bytes(tiny_model.tokenizer_bytes(VOCABULARY))
    return folder


def write_byte_tokenizer(folder: Path, **settings: Any) -> None:
    """tokenizer.json and tokenizer_config.json like those of SmolLM2; `settings` go into the latter."""
    (folder / "tokenizer.json").write_text(_byte_tokenizer())
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "model_max_length": 256,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config | settings))


@functools.lru_cache
def _byte_tokenizer() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = random.Random(0)
    syllables = ["ta", "ble", "co", "lumn", "se", "lect", "from", "where", "SEL", "ECT", "Q:", "A:"]
    lines = [" ".join("".join(words.choices(syllables, k=3)) for _ in range(12)) + " 12 1234" for _ in range(200)]
    tokenizer.train_from_iterator(lines, trainer)
    # Set now, so that there are merges of digits which it forbids: who leaves it out gets other ids.
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, tokenizer.pre_tokenizer])
    return str(tokenizer.to_str())
