from __future__ import annotations

import pytest

from sqlora.count import count_adapter_parameters, count_parameters
from sqlora.errors import SqloraError

MISTRAL_7B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
SMOLLM2_135M = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}


def test_mistral_7b_has_what_the_reference_prints() -> None:
    assert count_parameters(MISTRAL_7B) == 7_241_732_096
    lora = count_adapter_parameters(MISTRAL_7B, adapter="lora", layers=16, rank=8, targets=["q_proj", "v_proj"])
    assert lora == 1_703_936
    assert (f"{count_parameters(MISTRAL_7B) / 1e6:.3f}M", f"{lora / 1e6:.3f}M") == ("7241.732M", "1.704M")


def test_tied_embeddings_count_once_and_head_dim_follows_from_the_width() -> None:
    assert count_parameters(SMOLLM2_135M) == 134_515_008


def test_head_dim_that_is_not_width_over_heads() -> None:
    wide = MISTRAL_7B | {"head_dim": 256}
    assert count_parameters(wide) - count_parameters(MISTRAL_7B) == 32 * 128 * (2 * 32 + 2 * 8) * 4096


def test_biases_count() -> None:
    biased = MISTRAL_7B | {"attention_bias": True, "mlp_bias": True}
    assert count_parameters(biased) - count_parameters(MISTRAL_7B) == 32 * (4096 + 1024 * 2 + 4096 + 2 * 14336 + 4096)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 33}, "at most 32"),
        ({"targets": ["q_proj", "w_proj"]}, "w_proj"),
    ],
)
def test_an_adapter_that_does_not_fit(changes: dict, message: str) -> None:
    with pytest.raises(SqloraError, match=message):
        count_adapter_parameters(
            MISTRAL_7B, **{"adapter": "lora", "layers": 1, "rank": 8, "targets": ["q_proj"]} | changes
        )


def test_missing_keys_are_listed_together() -> None:
    with pytest.raises(SqloraError, match="no num_attention_heads, vocab_size"):
        count_parameters({k: v for k, v in MISTRAL_7B.items() if k not in ("vocab_size", "num_attention_heads")})
