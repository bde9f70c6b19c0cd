from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import mistral_common
import pytest
import sentencepiece
from tiny_model import CONFIG, tokenizer_bytes
from tokenizers import Tokenizer

from sqlora.convert.checkpoint import MistralConfig
from sqlora.convert.huggingface import model_config
from sqlora.convert.tokenizer import ODD_STRINGS, check_tokenizer, convert_tokenizer, load_sentencepiece
from sqlora.errors import SqloraError

MISTRAL = Path(mistral_common.__file__).parent / "data/tokenizer.model.v1"
Pair = tuple[Tokenizer, sentencepiece.SentencePieceProcessor]


@pytest.fixture(scope="module", params=["mistral", "tiny"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the written tokenizer and a config.json, all that a tokenizer's loaders look at."""
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    source, size = MISTRAL, 32000
    if request.param == "tiny":
        source, size = folder / "source", 512
        source.write_bytes(tokenizer_bytes(size))
    convert_tokenizer(source, folder, vocab_size=size)
    assert (folder / "tokenizer.model").read_bytes() == source.read_bytes()
    config = model_config(MistralConfig(**CONFIG | {"vocab_size": size}), dtype="float32", bos=1, eos=2)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    return Tokenizer.from_file(str(folder / "tokenizer.json")), load_sentencepiece(folder / "tokenizer.model")


def wikisql_texts(count: int) -> Iterator[str]:
    generator = random.Random(7)
    text = "Player No. (#) School/club Año Points, total d'Artagnan Zürich 1–0 % Łódź São № “Home” RBI"
    words = text.split(" ")
    for _ in range(count):
        header = ", ".join(" ".join(generator.choices(words, k=generator.randint(1, 3))) for _ in range(6))
        table = f"{generator.randint(1, 2)}-{generator.randrange(10**8)}-{generator.randrange(30)}"
        value = generator.choice(words) + " " + str(generator.randrange(10**5) / 100)
        yield (
            f"table: {table}\ncolumns: {header}\n"
            f"Q: What is the {generator.choice(words)} of {value}?{' ' * generator.randrange(3)}\n"
            f"A: SELECT COUNT {generator.choice(words)} FROM {table} WHERE {generator.choice(words)} = '{value}'"
        )


def noise(count: int) -> Iterator[str]:
    generator = random.Random(8)
    for _ in range(count):
        runs = "".join(c * generator.randint(1, 40) for c in generator.choices("ab -=.\n'0#*_/\t", k=5))
        odd = "".join(
            chr(generator.choice([generator.randrange(0xD800), generator.randrange(0xE000, 0x110000)]))
            for _ in range(9)
        )
        yield runs + odd


def test_ids_are_those_of_sentencepiece(pair: Pair) -> None:
    tokenizer, processor = pair
    for text in [*ODD_STRINGS, *wikisql_texts(400), *noise(400)]:
        assert tokenizer.encode(text, add_special_tokens=False).ids == processor.encode(text), text
        assert tokenizer.encode(text).ids == processor.encode(text, add_bos=True), text


def test_texts_come_back(pair: Pair) -> None:
    tokenizer, processor = pair
    for text in [*ODD_STRINGS, *wikisql_texts(50), *noise(50)]:
        ids = processor.encode(text)
        assert tokenizer.decode(ids) == processor.decode(ids) == text.replace("▁", " ")


def test_mlx_lm_loads_it_with_the_same_ids(folder: Path, pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    from mlx_lm.tokenizer_utils import SPMStreamingDetokenizer
    from mlx_lm.utils import load_tokenizer

    _, processor = pair
    tokenizer = load_tokenizer(folder)
    assert not caplog.records
    assert isinstance(tokenizer.detokenizer, SPMStreamingDetokenizer)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.eos_token_ids) == (1, 2, {2})
    for text in [*ODD_STRINGS, *wikisql_texts(50)]:
        ids = processor.encode(text)
        assert tokenizer.encode(text) == [1, *ids]
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert tokenizer.decode([1, *ids, 2], skip_special_tokens=True) == text.replace("▁", " ")


def test_vocabulary_that_does_not_fit_the_embedding(tmp_path: Path) -> None:
    with pytest.raises(SqloraError, match=r"found a vocabulary of 32000 pieces; expected 32768"):
        convert_tokenizer(MISTRAL, tmp_path, vocab_size=32768)


@pytest.mark.parametrize("content", [b"", b"no model", None])
def test_no_sentencepiece_model(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "source").write_bytes(content)
    with pytest.raises(SqloraError, match=r"expected a sentencepiece (BPE )?model"):
        convert_tokenizer(tmp_path / "source", tmp_path, vocab_size=512)


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "unigram"},
        {"byte_fallback": False},
        {"normalization_rule_name": "nfkc"},
        {"add_dummy_prefix": False},
        {"remove_extra_whitespaces": True},
        {"treat_whitespace_as_suffix": True},
        {"user_defined_symbols": ["[X Y]", "SELECT"]},
        {"bos_id": -1},
    ],
    ids=str,
)
def test_another_kind_of_sentencepiece_is_refused(tmp_path: Path, options: dict) -> None:
    model = io.BytesIO()
    usual = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}
    usual |= {"remove_extra_whitespaces": False, "num_threads": 1, "minloglevel": 2, "vocab_size": 400}
    lines = [" ".join(text.split()) for text in wikisql_texts(100)]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **usual | options)
    (tmp_path / "source").write_bytes(model.getvalue())
    with pytest.raises(SqloraError, match="expected a sentencepiece BPE model"):
        convert_tokenizer(tmp_path / "source", tmp_path, vocab_size=400)


@pytest.mark.parametrize("change", [list.reverse, lambda merges: merges.pop(0)], ids=["order", "one less"])
def test_wrong_merges_are_noticed(pair: Pair, tmp_path: Path, change: Callable[[list], object]) -> None:
    tokenizer, processor = pair
    content = json.loads(tokenizer.to_str())
    change(content["model"]["merges"])
    with pytest.raises(SqloraError, match="where the same rules give"):
        check_tokenizer(Tokenizer.from_str(json.dumps(content)), processor, tmp_path)
