from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from sqlora.errors import SqloraError
from sqlora.text import render_prompt
from sqlora.tokenizer import Tokenizer

PROMPT = render_prompt("1-1000181-1", ("State/territory", "Notes"), "Tell me what the notes are for South Australia ")
COMPLETION = " SELECT Notes FROM 1-1000181-1 WHERE State/territory = 'SOUTH AUSTRALIA'"


@pytest.fixture(params=["tiny", "mistral"])
def tokenizer(request: pytest.FixtureRequest, model_folder: Path, tmp_path: Path) -> Tokenizer:
    if request.param == "tiny":
        return Tokenizer(model_folder)
    spec = find_spec("mistral_common")
    assert spec
    assert spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0]) / "data" / "tokenizer.model.v1"
    (tmp_path / "tokenizer.model").write_bytes(source.read_bytes())
    return Tokenizer(tmp_path)


def test_training_sees_the_tokens_that_generation_is_given(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode_example(PROMPT, COMPLETION)
    assert list(encoded.tokens[: encoded.prompt_tokens]) == tokenizer.encode_prompt(PROMPT)
    assert encoded.tokens[0] == tokenizer.bos
    assert encoded.tokens[-1] == tokenizer.eos
    assert encoded.tokens.count(tokenizer.eos) == 1
    assert tokenizer.decode(list(encoded.tokens[encoded.prompt_tokens : -1])) == COMPLETION.lstrip()


def test_the_references_prompt_would_not_fit(tokenizer: Tokenizer) -> None:
    # Its blank after `A:` becomes a token of its own, which training never shows at that place.
    with pytest.raises(SqloraError, match="spans prompt and completion"):
        tokenizer.encode_example(PROMPT + " ", COMPLETION[1:])


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SqloraError, match=r"tokenizer\.json.*no such file"):
        Tokenizer(tmp_path)
