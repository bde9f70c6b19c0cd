"""Grammars of answers: what they admit can be read, and their forced tokens are those of training."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import mistral_common
import numpy as np
import pytest
import tokenizers
from llguidance import LLExecutor, LLMatcher, LLTokenizer
from tiny_model import tokenizer_bytes

from sqlora.convert.tokenizer import convert_tokenizer
from sqlora.generate.constraint import Constraint, fill
from sqlora.generate.grammar import beginning
from sqlora.generate.vocabulary import make_vocabulary
from sqlora.sql.parse import parse_sql
from sqlora.text import Example
from sqlora.tokenizer import Tokenizer
from sqlora.wikisql.form import LogicalForm

MISTRAL = Path(mistral_common.__file__).parent / "data/tokenizer.model.v1"
NAMES = [
    *(
        "Home team",
        "Home team score",
        "Home",
        "home team",
        "team",
        "Year",
        "2",
        "1998",
        "1998 goals",
        "",
        "%",
        "No. (#)",
    ),
    *("WHERE", "FROM", "AND", "SELECT", "COUNT", "MAX", "MAX goals", "From", "where from", "R AND D", "Score FROM 1-2"),
    *(
        "a, b",
        "x'y",
        'q"z',
        "[b]",
        "`t`",
        "'",
        "a/b\\c",
        "Año № 1–0",
        "Łódź 🏆",
        "ſtraße",
        "(x",
        "x)",
        "end ",
        " start",
    ),
]
WORDS = [
    "South",
    "AUSTRALIA",
    "o'Hara",
    "girls'",
    "AND",
    "won",
    "42,308",
    "3.5",
    "2005-06",
    ".75",
    "Zürich",
    "(b)",
    '"x"',
]


@dataclass
class Case:
    tokenizer: Tokenizer
    vocabulary: LLTokenizer


@pytest.fixture(scope="module", params=["mistral", "tiny", "bytes", "mistral.json"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Mistral's, a small one of its kind, one of bytes with tokenizer.json alone, and Mistral's so."""
    folder = tmp_path_factory.mktemp("tokenizer")
    size = 512 if request.param in ("tiny", "bytes") else 32000
    if request.param == "mistral":
        shutil.copy(MISTRAL, folder / "tokenizer.model")
    elif request.param == "tiny":
        (folder / "tokenizer.model").write_bytes(tokenizer_bytes(size))
    elif request.param == "bytes":
        write_byte_tokenizer(folder, size)
    else:
        convert_tokenizer(MISTRAL, folder, vocab_size=size)
        (folder / "tokenizer.model").unlink()
    tokenizer = Tokenizer(folder)
    return Case(tokenizer, make_vocabulary(tokenizer, size + 30))  # an output may be wider than the vocabulary


def write_byte_tokenizer(folder: Path, size: int) -> None:
    """A tokenizer like GPT-2's, digits one by one as SmolLM2's."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([" ".join(NAMES + WORDS) + " SELECT FROM WHERE AND = '"] * 3, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')


@pytest.fixture(scope="module")
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def random_example(generator: random.Random) -> Example:
    """A table of nasty names, and a question about it with a query that its grammar must admit."""
    header = tuple(generator.sample(NAMES, generator.randint(1, 8)))
    types = tuple(generator.choice(["text", "real"]) for _ in header)
    words = generator.choices(WORDS, k=generator.randint(1, 9))
    numbers = ["42308", "3.5", "2005", "0.75"]
    conds = []
    for column in generator.sample(range(len(header)), min(len(header), generator.randint(0, 4))):
        start = generator.randrange(len(words))
        value: str | int | float = " ".join(words[start : start + generator.randint(1, 3)])
        if types[column] == "real":
            number = generator.choice(numbers)
            words.append(number)
            value = float(number) if "." in number else int(number)
        elif "' " in value:
            value = ""  # the grammar has no text with a quote before a blank
        elif generator.random() < 0.3:
            value = value.swapcase()
        conds.append((column, generator.randrange(3), value))
    form = LogicalForm(generator.randrange(len(header)), generator.randrange(6), tuple(conds))
    table_id = generator.choice(["1-1000181-1", "7", "t AND", "from", "2-3-WHERE"])
    return Example(table_id, " ".join(words), header, types, form)


@pytest.mark.parametrize("with_question", [False, True])
def test_the_answers_of_training_are_written_with_the_tokens_of_training(
    case: Case, workers: ThreadPoolExecutor, with_question: bool
) -> None:
    generator = random.Random(1)
    forced = total = shorter = 0
    for _ in range(100):
        example = random_example(generator)
        encoded = case.tokenizer.encode_example(example.prompt, example.completion)
        expected = list(encoded.tokens[encoded.prompt_tokens : -1])
        constraint = Constraint(case.vocabulary, example, example.question if with_question else None, workers)
        written: list[int] = []
        queries: list[int] = []
        while True:
            constraint.start()
            tokens = constraint.forced(1000)
            forced += len(tokens)
            written += tokens
            assert written == expected[: len(written)], (example.completion, case.tokenizer.decode(written))
            if len(written) == len(expected):
                break
            constraint.start()
            assert expected[len(written)] in allowed(case, constraint), (example, case.tokenizer.decode(written))
            constraint.take(expected[len(written)])
            written.append(expected[len(written)])
            queries.append(constraint.complete)
        constraint.start()
        assert constraint.accepts(), example.completion
        assert constraint.complete == len(written)
        for complete in set(queries) - {0}:
            text = case.tokenizer.decode(written[:complete])
            assert parse_sql(text, example.id, example.header, example.types).outcome == "ok", text
            shorter += complete < len(written)
        assert case.tokenizer.eos in allowed(case, constraint) or constraint.finished()
        total += len(written)
    assert forced > 0.3 * total
    assert shorter > 50


@pytest.mark.parametrize("with_question", [False, True])
def test_whatever_is_written_can_be_read_as_a_query_of_the_table(
    case: Case, workers: ThreadPoolExecutor, with_question: bool
) -> None:
    generator = random.Random(2)
    finished = conditions = 0
    for _ in range(100):
        example = random_example(generator)
        text = write_at_random(case, example, with_question, workers, generator)
        if text is None:
            continue
        finished += 1
        parsed = parse_sql(text, example.id, example.header, example.types)
        assert parsed.outcome == "ok", (text, example.header, example.types, parsed)
        assert parsed.form
        used = [example.header[column] for column, _, _ in parsed.form.conds]
        conditions += len(used)
        assert len(set(used)) == len(used), (text, example.header)
        if with_question:
            for (column, _, value), literal in zip(parsed.form.conds, parsed.literals, strict=True):
                if example.types[column] == "text":
                    assert literal.lower() in example.question.lower(), (text, value)
    assert finished > 40
    assert conditions > 20


def write_at_random(
    case: Case, example: Example, with_question: bool, workers: ThreadPoolExecutor, generator: random.Random
) -> str | None:
    """An answer of tokens chosen at random, the end and quotes more often than others; after 120 the longest query."""
    constraint = Constraint(case.vocabulary, example, example.question if with_question else None, workers)
    written: list[int] = []
    closing = {token for token in range(512) if case.vocabulary.decode_bytes([token]) in (b"'", b"' ")}
    for _ in range(120):
        constraint.start()
        written += constraint.forced(100)
        if constraint.finished():
            return case.tokenizer.decode(written)
        choices = allowed(case, constraint)
        if case.tokenizer.eos in choices and generator.random() < 0.2:
            return case.tokenizer.decode(written)
        likely = [token for token in choices if token in closing]
        others = [token for token in choices if token != case.tokenizer.eos]
        written.append(generator.choice(likely if likely and generator.random() < 0.3 else others))
        constraint.take(written[-1])
    return case.tokenizer.decode(written[: constraint.complete]) if constraint.complete else None


def allowed(case: Case, constraint: Constraint) -> list[int]:
    size = case.vocabulary.vocab_size
    masks = np.zeros((1, -(-size // 32)), np.int32)
    fill({0: constraint}, masks, LLExecutor(1))
    return [int(token) for token in np.flatnonzero(np.unpackbits(masks.view(np.uint8), bitorder="little"))]


@pytest.mark.parametrize("question", ["x" * 998 + "' and", "", "?", "' ", "x" * 2000, "a\n' or\tb"])
def test_any_question_makes_a_grammar(question: str) -> None:
    table = Example("1", question, ("a", "b"), ("text", "real"), LogicalForm(0, 0, ()))
    assert not LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(beginning(table, question)))


@pytest.mark.parametrize(
    ("question", "numbers"),
    [
        ("games 3,4 and 12,345", {"34", "3", "4", "12345"}),
        ("42,308.5,", {"42308.5"}),
        ("2005-06", {"2005", "-06", "-6", "06", "6"}),
        (".75", {"0.75"}),
    ],
)
def test_numbers_of_a_question(question: str, numbers: set[str]) -> None:
    table = Example("1", question, ("a",), ("real",), LogicalForm(0, 0, ()))
    (line,) = [line for line in beginning(table, question).splitlines() if line.startswith("NUMBER: ")]
    assert set(line.removeprefix("NUMBER: ").replace('"', "").split(" | ")) == numbers


def test_a_copy_goes_its_own_way(case: Case, workers: ThreadPoolExecutor) -> None:
    example = Example("1", "?", ("Year", "Home"), ("text", "text"), LogicalForm(0, 0, ()))
    first = Constraint(case.vocabulary, example, None, workers)
    first.start()
    first.forced(100)
    before = allowed(case, first)
    second = first.copy()
    second.take(before[0])
    assert allowed(case, first) == before
    assert allowed(case, second) != before
