from __future__ import annotations

from pathlib import Path

from sqlora.mlx import mx, nn

import pytest

from sqlora.generate.run import generate
from sqlora.model import load_base
from sqlora.params.generate import GenerateParams
from sqlora.text import Example
from sqlora.tokenizer import Tokenizer
from sqlora.wikisql.form import LogicalForm

QUESTIONS = [
    ("no?", ("a", "b")),
    ("tables", ("notes",)),
    ("select notes " * 9, ("a long name", "another long name", "c")),
    ("co", ("co",)),
    ("", ("x", "y", "z")),
    ("x y z", ("x", "y", "z", "u", "v", "w")),
]


def examples() -> list[Example]:
    return [
        Example(f"1-{number}", question, header, ("text",) * len(header), LogicalForm(0, 0, ()))
        for number, (question, header) in enumerate(QUESTIONS)
    ]


def one_at_a_time(model: nn.Module, tokenizer: Tokenizer, prompt: str, limit: int) -> tuple[list[int], bool]:
    """Greedy decoding without cache or batch: the whole model at every step."""
    tokens, written = tokenizer.encode_prompt(prompt), list[int]()
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
    model.lm_head.weight = mx.concatenate([rows[:2], rows[2:3] * 1.9, rows[3:]])
    return model, tokenizer


def params(batch_size: int, max_tokens: int) -> GenerateParams:
    return GenerateParams(batch_size=batch_size, max_tokens=max_tokens, constrain="none", execution_guided=None)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batched_decoding_equals_one_at_a_time_in_the_order_of_the_questions(
    model_folder: Path, batch_size: int
) -> None:
    model, tokenizer = model_that_stops(model_folder)
    expected = [one_at_a_time(model, tokenizer, example.prompt, 12) for example in examples()]
    assert len({stopped for _, stopped in expected}) == 2, "the test needs rows that stop and rows that do not"
    got = generate(model, tokenizer, examples(), params(batch_size, 12))
    assert [(c.completion, c.stopped, c.tokens) for c in got] == [
        (tokenizer.decode(tokens), stopped, len(tokens)) for tokens, stopped in expected
    ]


def test_max_tokens_ends_a_row_without_calling_it_stopped(model_folder: Path) -> None:
    model, tokenizer = model_that_stops(model_folder)
    for completion in generate(model, tokenizer, examples(), params(4, 3)):
        assert completion.tokens == 3 if not completion.stopped else completion.tokens < 3
