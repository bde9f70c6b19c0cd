from __future__ import annotations

import pytest

from sqlora.model import context_length

WINDOW = {"sliding_window": 4096, "max_position_embeddings": 32768}


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        (WINDOW, 4096),  # mlx-lm would ignore the window
        (WINDOW | {"sliding_window": None}, 32768),
        (WINDOW | {"layer_types": ["full_attention"] * 2}, 4096),
        (WINDOW | {"layer_types": ["full_attention", "sliding_attention"]}, 32768),  # here it applies it
        ({"max_position_embeddings": 2048}, 2048),
    ],
)
def test_context_is_what_mlx_lm_computes_correctly(config: dict, tokens: int) -> None:
    assert context_length(config) == tokens
