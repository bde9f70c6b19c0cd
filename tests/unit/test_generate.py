from __future__ import annotations

from pathlib import Path

from sqlora.mlx import mx, nn

import pytest

from sqlora.generate import generate
from sqlora.model import load_base
from sqlora.params.generate import GenerateParams
from sqlora.tokenizer import Tokenizer

PROMPTS = [
    "table: 1-2\ncolumns: a, b\nQ: no?\nA:",
    "Q: tables\nA:",
    "table select notes\n" * 5 + "A:",
    "co",
    "A:",
    "x y z",
]


def one_at_a_time(model: nn.Module, tokenizer: Tokenizer, prompt: str, limit: int) -> tuple[list[int], bool]:
    """Greedy decoding without cache or batch: the whole model at every step."""
    tokens, written = tokenizer.encode_prompt(prompt), []
    while len(written) < limit:
        chosen = int(mx.argmax(model(mx.array([tokens]))[0, -1]).item())
        if chosen == tokenizer.eos:
            return written, True
        tokens.append(chosen)
        written.append(chosen)
    return written, False


def model_that_stops(folder: Path) -> tuple[nn.Module, Tokenizer]:
    """The tiny model with EOS made likelier, so that some rows stop early and others never."""
    model, _ = load_base(folder)
    tokenizer = Tokenizer(folder)
    rows = model.lm_head.weight
    model.lm_head.weight = mx.concatenate([rows[:2], rows[2:3] * 2.4, rows[3:]])
    return model, tokenizer


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batched_decoding_equals_one_at_a_time_in_the_order_of_the_prompts(model_folder: Path, batch_size: int) -> None:
    model, tokenizer = model_that_stops(model_folder)
    expected = [one_at_a_time(model, tokenizer, prompt, 12) for prompt in PROMPTS]
    assert len({stopped for _, stopped in expected}) == 2, "the test needs rows that stop and rows that do not"
    got = generate(model, tokenizer, PROMPTS, GenerateParams(batch_size=batch_size, max_tokens=12))
    assert [(c.completion, c.stopped, c.tokens) for c in got] == [
        (tokenizer.decode(tokens), stopped, len(tokens)) for tokens, stopped in expected
    ]


def test_max_tokens_ends_a_row_without_calling_it_stopped(model_folder: Path) -> None:
    model, tokenizer = model_that_stops(model_folder)
    for completion in generate(model, tokenizer, PROMPTS, GenerateParams(batch_size=4, max_tokens=3)):
        assert completion.tokens == 3 if not completion.stopped else completion.tokens < 3
