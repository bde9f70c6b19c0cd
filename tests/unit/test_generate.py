from __future__ import annotations

import itertools
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlora.mlx import mx, nn, tree_map

import numpy as np
import pytest
from llguidance import LLExecutor
from mlx_lm.tuner.utils import linear_to_lora_layers
from tiny_llama import write_model

from sqlora.distributed.group import Group
from sqlora.errors import SqloraError
from sqlora.generate import activations
from sqlora.generate.answer import Answer, Job
from sqlora.generate.choose import Counts
from sqlora.generate.constraint import Constraint, fill
from sqlora.generate.engine import CPU_SHAPES, GPU_SHAPES, Engine, Shapes
from sqlora.generate.forward import Modules
from sqlora.generate.fused import Fused
from sqlora.generate.guided import Beam, Guided
from sqlora.generate.run import blocks_of, generate, returns_something
from sqlora.generate.saved import Saved, drop_older
from sqlora.generate.vocabulary import make_vocabulary
from sqlora.llama import mergeable
from sqlora.model import load_base
from sqlora.params.generate import GenerateParams
from sqlora.sql.execute import build_database, open_database
from sqlora.sql.parse import parse_sql
from sqlora.text import Example
from sqlora.tokenizer import Tokenizer
from sqlora.wikisql.form import LogicalForm
from sqlora.wikisql.layout import Table

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


def model_that_stops(folder: Path, likelier: float = 1.9) -> tuple[nn.Module, Tokenizer]:
    """The tiny model with EOS made likelier, so that some rows stop early and others never."""
    model, _ = load_base(folder)
    tokenizer = Tokenizer(folder)
    rows = model.lm_head.weight
    model.lm_head.weight = mx.concatenate([rows[:2], rows[2:3] * likelier, rows[3:]])
    return model, tokenizer


def params(batch_size: int, max_tokens: int, constrain: str = "none") -> GenerateParams:
    return GenerateParams(batch_size, max_tokens, constrain, None, workers=1, hostfile=None, backend="auto")


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


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_quantized_tied_and_adapted_models_decode_in_batches_as_one_at_a_time(kind: str, tmp_path: Path) -> None:
    tied = kind == "llama"
    write_model(tmp_path / "model", kind, tokenizer="bytes" if tied else "sentencepiece", tie_word_embeddings=tied)
    model, _ = load_base(tmp_path / "model")
    nn.quantize(model, group_size=32, bits=4)
    linear_to_lora_layers(model, 2, {"rank": 4, "dropout": 0.0, "scale": 5.0})
    model.update(tree_map(lambda weight: weight + 0.05, model.trainable_parameters()))
    model.eval()
    tokenizer = Tokenizer(tmp_path / "model")
    expected = [one_at_a_time(model, tokenizer, example.prompt, 12) for example in examples()]
    got = generate(model, tokenizer, examples(), params(4, 12))
    assert [(c.completion, c.tokens) for c in got] == [
        (tokenizer.decode(tokens), len(tokens)) for tokens, _ in expected
    ]


def test_max_tokens_ends_a_row_without_calling_it_stopped(model_folder: Path) -> None:
    model, tokenizer = model_that_stops(model_folder)
    for completion in generate(model, tokenizer, examples(), params(4, 3)):
        assert completion.tokens == 3 if not completion.stopped else completion.tokens < 3


def adapt(model: nn.Module) -> None:
    """Put LoRA layers that change something on some of the projections, of some layers."""
    keys = ["self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj"]
    linear_to_lora_layers(model, 2, {"rank": 4, "dropout": 0.0, "scale": 5.0, "keys": keys})
    model.update(tree_map(lambda weight: weight + 0.02, model.trainable_parameters()))
    model.eval()


def quantized_and_adapted(model: nn.Module) -> Fused:
    nn.quantize(model, group_size=32, bits=4)
    adapt(model)
    return Fused(model, compiled=False)


def adapted(model: nn.Module) -> Fused:
    adapt(model)
    return Fused(model, compiled=False)


FUSED = {
    "fused": lambda model: Fused(model, compiled=False),
    "adapted": adapted,
    "quantized": quantized_and_adapted,
}


def test_merged_weights_are_in_memory_once_and_the_model_still_computes_with_them(tmp_path: Path) -> None:
    model, _ = load_base(write_model(tmp_path / "model", tokenizer="sentencepiece"))
    adapt(model)
    tokens = mx.array([[5, 6, 7]])
    before, layer = model(tokens), model.layers[0]
    mx.eval(before)
    held = mx.get_active_memory()
    fused = Fused(model, compiled=False)
    parts = [part for one in fused._layers for part in (one.inputs, one.output, one.gates, one.down)]
    factors = sum(part[name].nbytes for part in parts for name in "ab" if name in part)
    assert mx.get_active_memory() - held < factors + layer.mlp.gate_proj.weight.nbytes, "of 13 such that were merged"
    assert mx.array_equal(model(tokens), before)
    assert mergeable(model.layers)
    nn.quantize(model.layers[0], group_size=32, bits=4, class_predicate=lambda path, _: path.endswith("q_proj"))
    assert not mergeable(model.layers), "a quantized projection beside a plain one cannot be merged"


def test_prompts_leave_no_more_behind_than_the_caches_hold(model_folder: Path) -> None:
    model, _ = load_base(model_folder)
    engine = Engine(Fused(model, compiled=False), 8, GPU_SHAPES)
    before = mx.get_active_memory()
    rng = np.random.default_rng(1)
    for first in (0, 4):
        mx.eval(engine.read_prompts({row: rng.integers(3, 500, 100).tolist() for row in range(first, first + 4)}))
        mx.synchronize()
        held = mx.get_active_memory() - before
        caches = sum(cache.held.nbytes for cache in engine._caches)
        assert held < 1.1 * caches + 10_000


def test_long_prompts_are_attended_to_in_parts(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = load_base(model_folder)
    texts = {0: list(range(3, 83)), 1: list(range(90, 150))}
    whole = Engine(Modules(model), 2, CPU_SHAPES).read_prompts(texts)
    mx.eval(whole)
    monkeypatch.setattr("sqlora.generate.activations._SCORES", 3_000)
    calls: list[int] = []
    plain = activations.attend
    monkeypatch.setattr(activations, "attend", lambda *given: calls.append(1) or plain(*given))
    parts = Engine(Modules(model), 2, CPU_SHAPES).read_prompts(texts)
    assert mx.allclose(whole, parts, rtol=1e-4, atol=1e-4).item()
    assert len(calls) > 3, "of so many parts"


@pytest.mark.parametrize(("forward", "plain"), [("modules", 512), *((name, n) for name in FUSED for n in (512, 9))])
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("shapes", [CPU_SHAPES, GPU_SHAPES, Shapes((1, 2), 1, 1, 1, 50)])
def test_rows_that_advance_by_different_amounts_see_their_own_tokens_only(
    model_folder: Path,
    tmp_path: Path,
    shapes: Shapes,
    window: int | None,
    forward: str,
    plain: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sqlora.generate.fused.PLAIN_ATTENTION", plain)
    folder = model_folder
    if forward == "quantized":  # whose weights come in groups of 32
        folder = tmp_path / "wide"
        write_model(folder, "mistral", tokenizer="sentencepiece", sliding_window=None)
    if window:
        shutil.copytree(folder, tmp_path / "windowed")
        folder = tmp_path / "windowed"
        config = json.loads((folder / "config.json").read_text())
        config |= {"sliding_window": window, "layer_types": ["sliding_attention", "full_attention"] * 2}
        config["layer_types"] = config["layer_types"][: config["num_hidden_layers"]]
        (folder / "config.json").write_text(json.dumps(config))
    model, _ = load_base(folder)
    assert [layer.use_sliding for layer in model.layers] == [bool(window), False, bool(window)]
    rng = np.random.default_rng(1)
    engine = Engine(({"modules": Modules} | FUSED)[forward](model), 4, shapes)
    texts: dict[int, list[int]] = {}
    for turn in range(30):
        if turn % 7 == 0:  # other questions take some of the rows
            prompts = {row: rng.integers(3, 500, rng.integers(1, 30)).tolist() for row in range(turn % 2, 4)}
            logits = engine.read_prompts(prompts)
            texts |= prompts
            check(model, texts, logits, dict(enumerate(prompts)))
        if turn % 10 == 9:
            sources = rng.integers(0, 4, 4).astype(np.int32)
            engine.reorder(sources)
            texts = {row: [*texts[int(source)]] for row, source in enumerate(sources) if int(source) in texts}
        rows = [row for row in texts if rng.random() < 0.7] or [next(iter(texts))]
        chunks = {row: rng.integers(3, 500, rng.integers(1, engine.widest + 1)).tolist() for row in rows}
        logits = engine.advance(chunks)
        for row, chunk in chunks.items():
            texts[row] += chunk
        check(model, texts, logits, {row: row for row in rows})


def check(model: nn.Module, texts: dict[int, list[int]], logits: mx.array, rows: dict[int, int]) -> None:
    for place, row in rows.items():
        expected = model(mx.array([texts[row]]))[0, -1]
        assert mx.allclose(logits[place], expected, rtol=1e-4, atol=1e-3).item(), (place, row)


@pytest.mark.parametrize("constrain", ["schema", "schema+question"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_skipping_forced_tokens_gives_the_answers_of_constrained_decoding_token_by_token(
    model_folder: Path, constrain: str, batch_size: int
) -> None:
    model, tokenizer = model_that_stops(model_folder)
    vocabulary = make_vocabulary(tokenizer, 512)
    counts = Counts()
    got = generate(model, tokenizer, examples(), params(batch_size, 60, constrain), counts=counts)
    expected = []
    with ThreadPoolExecutor(1) as workers:
        for example in examples():
            question = example.question if constrain == "schema+question" else None
            first, again = (Constraint(vocabulary, example, question, workers) for _ in range(2))
            tokens, stopped = token_by_token(model, tokenizer, example.prompt, first, 60)
            expected.append((tokens if stopped else tokens[: longest_query(tokenizer, again, tokens)], stopped))
    assert [(c.completion, c.stopped, c.tokens) for c in got] == [
        (tokenizer.decode(tokens), stopped, len(tokens)) for tokens, stopped in expected
    ]
    assert counts.forced > 20
    assert any(stopped for _, stopped in expected)


def longest_query(tokenizer: Tokenizer, constraint: Constraint, tokens: list[int]) -> int:
    """How many of an answer's tokens, from the first on, are the longest behind which the mask has EOS; 0 if none."""
    longest = 0
    for count, token in enumerate(tokens, 1):
        constraint.start()
        constraint.take(token)
        if not constraint.finished():
            mask = np.zeros((1, 16), np.int32)
            fill({0: constraint}, mask, LLExecutor(1))
            if mask[0, tokenizer.eos // 32] >> (tokenizer.eos % 32) & 1:
                longest = count
    return longest


@pytest.mark.parametrize("constrain", ["schema", "schema+question"])
@pytest.mark.parametrize("candidates", [1, 3])
def test_max_tokens_closes_a_constrained_answer_behind_its_longest_query(
    model_folder: Path, tmp_path: Path, constrain: str, candidates: int
) -> None:
    model, tokenizer = load_base(model_folder)[0], Tokenizer(model_folder)
    build_database(tmp_path / "tables.db", [Table(e.id, e.header, e.types, ()) for e in examples()])
    shortened = whole = unfinished = 0
    for limit in (6, 16, 19, 22, 25, 30, 40, 60):
        settings = replace(params(4, limit, constrain), execution_guided=candidates)
        got = generate(model, tokenizer, examples(), settings, database=tmp_path / "tables.db")
        for example, done in zip(examples(), got, strict=True):
            outcome = parse_sql(done.completion, example.id, example.header, example.types).outcome
            assert (outcome == "ok") == (done.stopped or done.closed), done
            assert not (done.stopped and done.closed)
            assert done.tokens <= limit
            shortened += done.closed and done.tokens < limit
            whole += done.closed and done.tokens == limit
            unfinished += not done.stopped and not done.closed
            if not done.stopped and not done.closed:
                assert done.tokens == limit < 19
    assert shortened > 3
    assert whole > 0
    assert unfinished >= len(examples()), "6 tokens are no query"


class Rank(Group):
    """One of two ranks that run one after the other; `shares` is what each has to tell."""

    def __init__(self, rank: int, shares: dict[int, Any]) -> None:
        super().__init__()
        self.rank, self.size, self._shares = rank, 2, shares

    def gather(self, value: Any) -> list[Any]:
        self._shares[self.rank] = value
        return list(self._shares.values())


def test_two_ranks_take_a_half_each_and_tell_each_other(model_folder: Path, tmp_path: Path) -> None:
    model, tokenizer = model_that_stops(model_folder)
    questions, shares = examples()[:5], dict[int, Any]()
    with pytest.raises(KeyError):  # the first one to come has not heard of the other's
        generate(model, tokenizer, questions, params(1, 12), group=Rank(0, shares))
    got = generate(model, tokenizer, questions, params(1, 12), group=Rank(1, shares))
    assert got == generate(model, tokenizer, questions, params(1, 12))
    halves = [[row[0] for row in share] for share in shares.values()]
    assert sorted(map(len, halves)) == [2, 3]
    assert sorted(halves[0] + halves[1]) == [0, 1, 2, 3, 4]
    alone = dict[int, Any]()
    assert generate(model, tokenizer, [], params(1, 12), group=Rank(0, alone)) == []
    with pytest.raises(KeyError):
        generate(model, tokenizer, questions[:1], params(1, 12), group=Rank(1, alone))
    assert alone[1] == [], "a rank more than there are questions"


@pytest.mark.parametrize("constrain", ["none", "schema"])
def test_beams_side_by_side_give_what_each_gives_alone(model_folder: Path, tmp_path: Path, constrain: str) -> None:
    model, tokenizer = model_that_stops(model_folder)
    tables = [Table(e.id, e.header, e.types, (("x",) * len(e.header),)) for e in examples()]
    build_database(tmp_path / "tables.db", tables)
    questions = [replace(example, question=text + example.question) for text in ("", "and ") for example in examples()]
    settings = replace(params(10, 24, constrain), execution_guided=3)  # three beams at a time, then others take rows
    got = generate(model, tokenizer, questions, settings, database=tmp_path / "tables.db")
    alone = [
        generate(model, tokenizer, [question], settings, database=tmp_path / "tables.db")[0] for question in questions
    ]
    assert got == alone
    greedy = generate(model, tokenizer, questions, params(10, 24, constrain))
    assert [one.completion for one in got] != [one.completion for one in greedy], "a beam makes a difference"


@pytest.mark.parametrize("constrain", ["none", "schema+question"])
@pytest.mark.parametrize("candidates", [None, 3])
def test_one_token_is_a_limit_like_any_other(
    model_folder: Path, tmp_path: Path, constrain: str, candidates: int | None
) -> None:
    model, tokenizer = load_base(model_folder)[0], Tokenizer(model_folder)
    build_database(tmp_path / "tables.db", [Table(e.id, e.header, e.types, ()) for e in examples()])
    settings = replace(params(16, 1, constrain), execution_guided=candidates)
    for done in generate(model, tokenizer, examples(), settings, database=tmp_path / "tables.db"):
        assert (done.tokens, done.stopped, done.closed) == (1, False, False)


@pytest.mark.parametrize("constrain", ["none", "schema"])
@pytest.mark.parametrize("candidates", [None, 3])
def test_a_model_that_gives_no_numbers_is_an_error(
    model_folder: Path, tmp_path: Path, candidates: int | None, constrain: str
) -> None:
    model, tokenizer = load_base(model_folder)[0], Tokenizer(model_folder)
    model.model.norm.weight = model.model.norm.weight * mx.array(float("nan"))
    build_database(tmp_path / "tables.db", [Table(e.id, e.header, e.types, ()) for e in examples()])
    settings = replace(params(4, 30, constrain), execution_guided=candidates)
    with pytest.raises(SqloraError, match="expected finite logits"):
        generate(model, tokenizer, examples(), settings, database=tmp_path / "tables.db")


class Watched(Guided):
    """Guided decoding that shows the candidates that did not pass."""

    tried: tuple[Answer, ...] = ()

    def _settled(self, beam: Beam) -> Answer | None:
        answer = super()._settled(beam)
        self.tried = tuple(beam.tried)
        return answer


def test_a_beam_executes_what_ended_only_and_prefers_it_then_what_was_closed(model_folder: Path) -> None:
    model, tokenizer = load_base(model_folder)[0], Tokenizer(model_folder)
    vocabulary = make_vocabulary(tokenizer, 512)
    ended_first = closed_first = 0
    with ThreadPoolExecutor(1) as workers:
        for limit, example in itertools.product((14, 15, 18), examples()):
            executed: list[Answer] = []

            def fails(candidate: Answer, executed: list[Answer] = executed) -> bool:
                executed.append(candidate)
                return False

            engine = Engine(Modules(model), 3, CPU_SHAPES)
            guided = Watched(engine, eos=tokenizer.eos, limit=limit, counts=Counts(), candidates=3, passes=fails)

            def constrain(example: Example = example) -> Constraint:
                return Constraint(vocabulary, example, None, workers)

            (answer,) = guided.run([Job(0, tokenizer.encode_prompt(example.prompt), constrain)])
            assert all(candidate.stopped for candidate in executed)
            kinds = [(other.stopped, other.closed) for other in guided.tried]
            assert (answer.stopped, answer.closed) == max(kinds)
            likeliest = max(guided.tried, key=lambda other: other.score)
            ended_first += answer.stopped and not likeliest.stopped
            closed_first += answer.closed and not likeliest.closed
    assert ended_first > 0
    assert closed_first > 0


def token_by_token(
    model: nn.Module, tokenizer: Tokenizer, prompt: str, constraint: Constraint, limit: int
) -> tuple[list[int], bool]:
    """Every token is one step of the whole model; where the grammar forces one, the mask has that one only."""
    tokens, written = tokenizer.encode_prompt(prompt), list[int]()
    forced: list[int] = []
    while len(written) < limit:
        constraint.start() if not written else None
        logits = model(mx.array([tokens]))[0, -1]
        forced = forced or constraint.forced(limit - len(written))
        mask = np.zeros((1, 16), np.int32)
        if forced:
            chosen = forced.pop(0)
        elif constraint.finished():
            return written, True
        else:
            fill({0: constraint}, mask, LLExecutor(1))
            bits = np.unpackbits(mask.view(np.uint8), bitorder="little").astype(bool)
            chosen = int(np.argmax(np.where(bits, np.array(logits), -np.inf)))
            if chosen == tokenizer.eos:
                return written, True
            constraint.take(chosen)
        tokens.append(chosen)
        written.append(chosen)
    return written, constraint.finished() and not forced


@pytest.mark.parametrize("failing", [0, 2])
def test_a_beam_gives_the_likeliest_candidate_that_passes(model_folder: Path, failing: int) -> None:
    model, tokenizer = model_that_stops(model_folder, 1.9)
    compared = 0
    for example in examples():
        prompt = tokenizer.encode_prompt(example.prompt)
        seen: list[tuple[int, ...]] = []

        def passes(answer: Answer, seen: list[tuple[int, ...]] = seen) -> bool:
            seen.append(tuple(answer.tokens))
            return len(seen) > failing

        guided = Guided(
            Engine(Modules(model), 8, CPU_SHAPES),
            eos=tokenizer.eos,
            limit=15,
            counts=Counts(),
            candidates=4,
            passes=passes,
        )
        (answer,) = guided.run([Job(0, prompt)])
        expected = [tokens for tokens, _ in beam(model, tokenizer.eos, prompt, 4, 15)]
        compared += len(seen[: len(expected)])
        assert seen[: len(expected)] == expected[: len(seen)]
        if len(seen) > failing:
            assert tuple(answer.tokens) == seen[-1]
    assert compared > failing


def beam(model: nn.Module, eos: int, prompt: list[int], size: int, limit: int) -> list[tuple[tuple[int, ...], float]]:
    """What a beam of `size` ends with EOS within `limit` tokens, the likeliest first, as far as that is certain."""
    live: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    ended: list[tuple[tuple[int, ...], float]] = []
    order = []
    while live:
        ways = []
        for tokens, score in live:
            logits = model(mx.array([[*prompt, *tokens]]))[0, -1].astype(mx.float32)
            scores = np.array(logits - mx.logsumexp(logits))
            ways += [(tokens, score + float(scores[token]), int(token)) for token in np.argsort(-scores)[:size]]
        ways.sort(key=lambda way: -way[1])
        live = []
        for tokens, score, token in ways[:size]:
            if token == eos:
                ended.append((tokens, score))
            elif len(tokens) + 1 < limit:
                live.append(((*tokens, token), score))
        ended.sort(key=lambda item: -item[1])
        while ended and len(order) < size and ended[0][1] >= max((score for _, score in live), default=-np.inf):
            order.append(ended.pop(0))
        if len(order) >= size:
            break
    return order


def test_a_query_that_finds_nothing_does_not_pass(tmp_path: Path) -> None:
    table = Table("1-1", ("Name", "Year"), ("text", "real"), (("Ann", 1990), ("Bo", 1991)))
    build_database(tmp_path / "tables.db", [table])
    with open_database(tmp_path / "tables.db") as runner:
        assert returns_something("SELECT Name FROM 1-1 WHERE Year > 1990", table, runner)
        assert returns_something("SELECT COUNT Name FROM 1-1 WHERE Year > 1990", table, runner)
        assert not returns_something("SELECT Name FROM 1-1 WHERE Year > 1999", table, runner)
        assert not returns_something("SELECT MAX Year FROM 1-1 WHERE Name = 'Cy'", table, runner)
        assert not returns_something("SELECT COUNT Name FROM 1-1 WHERE Name = 'Cy'", table, runner)
        assert not returns_something("SELECT Name FROM 1-1 WHERE Year = 'Ann'", table, runner)
        assert not returns_something("SELECT Nome FROM 1-1", table, runner)


@pytest.mark.parametrize(
    ("questions", "candidates", "blocks"),
    [
        (0, 1, 0),
        (40, 1, 1),
        (48, 1, 1),
        (100, 1, 2),
        (500, 1, 4),
        (1536, 1, 8),
        (15878, 1, 64),
        (100, 4, 4),
        (500, 4, 8),
    ],
)
def test_many_blocks_can_be_shared_by_two_and_four_ranks(questions: int, candidates: int, blocks: int) -> None:
    settings = replace(params(32, 60), execution_guided=candidates)
    assert blocks_of(questions, settings) == blocks


@pytest.mark.parametrize(("constrain", "limit"), [("none", 6), ("schema", 20)])
def test_a_run_that_broke_off_decodes_only_what_is_missing(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, constrain: str, limit: int
) -> None:
    settings = params(1, limit, constrain)
    model, tokenizer = model_that_stops(model_folder)
    questions = examples() * 8
    whole, resumed = Counts(), Counts()
    expected = generate(model, tokenizer, questions, settings, counts=whole)
    assert any(done.closed for done in expected) == (constrain == "schema")
    write, keep = Saved.write, tmp_path / "run"

    def break_off(self: Saved, block: int, answers: dict[int, object]) -> None:
        if block == 2:
            raise KeyboardInterrupt
        write(self, block, answers)  # type: ignore[arg-type]

    monkeypatch.setattr(Saved, "write", break_off)
    with pytest.raises(KeyboardInterrupt):
        generate(model, tokenizer, questions, settings, keep=keep)
    monkeypatch.setattr(Saved, "write", write)
    (keep / "block-00000.json").write_text("{")  # and one of the two is damaged
    assert generate(model, tokenizer, questions, settings, keep=keep, counts=resumed) == expected
    assert 0 < resumed.decisions < whole.decisions
    assert not keep.exists()


@pytest.mark.parametrize("written", [1, 1000])  # by another rank of this run, not lately or just now
def test_answers_of_old_unfinished_runs_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    monkeypatch.chdir(tmp_path)
    root = Path(".sqlora/generate")
    drop_older(root / "mine")  # there is nothing yet
    # Made in this order; a block was written to the first one last.
    for number, name in enumerate(["resumed", "mine", "old", "older", "newer", "newest"]):
        (root / name / "rank-0").mkdir(parents=True)
        (root / name / "rank-0" / "block-00000.json").touch()
        for path in (root / name / "rank-0", root / name):
            os.utime(path, (number, number))
    os.utime(root / "resumed/rank-0", (100, 100))
    os.utime(root / "mine/rank-0", (written, written))
    drop_older(root / "mine")
    assert sorted(path.name for path in root.iterdir()) == ["mine", "newer", "newest", "resumed"]
    assert (root / "resumed/rank-0/block-00000.json").exists()
