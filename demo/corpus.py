"""Pre-training documents, tokenized and packed into shards.

A document is a list of (text, weight): the loss counts queries fully and what cannot be known (schemas, values) little,
so that a small model spends its capacity on reading a schema and a question.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import sentencepiece
from examples import Item, Pool, demo_item, random_code, random_number, random_table_id, synthetic_item, wikisql_item
from surface import is_target_format, query_text, schema_text, sql_script

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
from sqlora.demo_data.generator import demo_examples

Document = list[tuple[str, float]]
CONTEXT, ASKED, ANSWER = 0.1, 0.3, 1.0
# The demo data itself is made from small seeds (params.yaml: data.demo_seed); these never meet them.
DEMO_SEEDS = 1_000_000

_QUESTION_HEADS = (
    "question: ",
    "ask: ",
    "query: ",
    "request: ",
    "user: ",
    "> ",
    "# ",
    "-- ",
    "Question: ",
    "",
    "",
    "task: ",
    "[q] ",
    "User: ",
    "? ",
    "/* ",
    "Request = ",
    "input: ",
    "what: ",
    "need: ",
)
_QUERY_HEADS = (
    "answer: ",
    "sql: ",
    "result: ",
    "query: ",
    "code: ",
    "=> ",
    "-> ",
    "program: ",
    "Query: ",
    "",
    "",
    "output: ",
    "[a] ",
    "Assistant: ",
    "! ",
    "SQL> ",
    "Answer = ",
    "run: ",
    "reply:",
    "then: ",
)


def documents(rng: Random, pool: Pool) -> Iterator[Document]:
    """Endless documents: half about WikiSQL's train questions, the rest synthetic, demo questions and copying."""
    demo = _demo_items(rng, pool)
    while True:
        draw = rng.random()
        if draw < 0.12:
            document = _copying(rng, pool)
        else:
            item = wikisql_item(rng, pool) if draw < 0.58 else synthetic_item(rng, pool) if draw < 0.86 else next(demo)
            document = _question_document(rng, item)
        if not is_target_format("".join(text for text, _ in document)):
            yield document


def _demo_items(rng: Random, pool: Pool) -> Iterator[Item]:
    while True:
        for table, questions in demo_examples(DEMO_SEEDS + rng.randrange(1 << 30), tables=50):
            for question in questions:
                yield demo_item(rng, pool, table, question)


def _question_document(rng: Random, item: Item) -> Document:
    draw = rng.random()
    if draw < 0.06:
        script, query = sql_script(rng, item)
        return [
            (script + "\n", CONTEXT),
            (rng.choice(("-- ", "/* ", "# ")) + item.question + "\n", ASKED),
            (rng.choice(("sql: ", "SQL> ", "```sql\n", "")), CONTEXT),
            (query, ANSWER),
        ]
    schema = schema_text(rng, item)
    gap = rng.choice(("\n", "\n", "\n", "\n\n", " ; "))
    ask, reply = rng.choice(_QUESTION_HEADS), rng.choice(_QUERY_HEADS)
    question = ask + item.question
    if draw < 0.72:
        return [(schema + gap, CONTEXT), (question + gap, ASKED), (reply, CONTEXT), (query_text(rng, item), ANSWER)]
    if draw < 0.80:
        return [(question + gap, ASKED), (schema + gap, CONTEXT), (reply, CONTEXT), (query_text(rng, item), ANSWER)]
    if draw < 0.88:  # from one language into another
        return [
            (schema + gap, CONTEXT),
            (query_text(rng, item) + gap, 0.5),
            (reply, CONTEXT),
            (query_text(rng, item), ANSWER),
        ]
    if draw < 0.94:  # the same query language twice: a format can be taken over from an example
        form = rng.randrange(1 << 30)
        first = synthetic_item(rng, item.pool)
        return [
            (schema_text(rng, first) + gap, CONTEXT),
            (ask + first.question + gap, ASKED),
            (reply, CONTEXT),
            (query_text(rng, first, form) + gap, ANSWER),
            (schema + gap, CONTEXT),
            (question + gap, ASKED),
            (reply, CONTEXT),
            (query_text(rng, item, form), ANSWER),
        ]
    return [(schema + gap, CONTEXT), (query_text(rng, item) + gap, ASKED), (ask, CONTEXT), (item.question, ANSWER)]


def _copying(rng: Random, pool: Pool) -> Document:
    """Exact copies of random ids, numbers and strings: of a list, of one of its entries, of a schema's columns."""
    draw = rng.random()
    if draw < 0.35:
        words = [rng.choice((random_code, random_number, random_table_id))(rng) for _ in range(rng.randrange(1, 6))]
        text = rng.choice((" ", ", ", "\n", " | ")).join(words)
        return [(rng.choice(("copy: ", "echo ", "repeat: ", "again: ")) + text + "\n", CONTEXT), (text, ANSWER)]
    if draw < 0.7:
        keys = [rng.choice(pool.words) if rng.random() < 0.5 else random_code(rng) for _ in range(rng.randrange(2, 8))]
        values = [pool.value(rng, rng.choice(("text", "real"))) for _ in keys]
        chosen = rng.randrange(len(keys))
        lines = "\n".join(f"{key} = {value}" for key, value in zip(keys, values))
        return [(lines + f"\n{keys[chosen]} ? ", CONTEXT), (values[chosen], ANSWER)]
    item = synthetic_item(rng, pool)
    return [(schema_text(rng, item) + "\n", CONTEXT), (schema_text(rng, item), ANSWER * 0.6)]


class Tokens:
    """Tokenizes documents and spreads their weights over the tokens."""

    def __init__(self, model: Path) -> None:
        self.processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        size = self.processor.vocab_size()
        # Bytes that each piece stands for, so that token ends can be matched with the ends of the document's parts.
        self.widths = np.array(
            [
                1
                if self.processor.is_byte(i)
                else 0
                if self.processor.is_control(i)
                else len(self.processor.id_to_piece(i).replace("▁", " ").encode())
                for i in range(size)
            ]
        )

    def encode(self, document: Document) -> tuple[np.ndarray, np.ndarray]:
        """Token ids with BOS and EOS (uint16), and for each the loss weight of predicting it (float16)."""
        ids = np.array(self.processor.encode("".join(text for text, _ in document)), dtype=np.int64)
        ends = np.cumsum(self.widths[ids]) - 1  # the dummy prefix is one blank more than the text has
        parts = np.cumsum([len(text.encode()) for text, _ in document])
        weights = np.array([weight for _, weight in document] + [ANSWER])
        part = np.searchsorted(parts, ends, side="left")
        return (
            np.concatenate(([1], ids, [2])).astype(np.uint16),
            np.concatenate(([0.0], weights[part], [ANSWER])).astype(np.float16),
        )


def write_shard(path: Path, seed: int, tokens: Tokens, pool: Pool, *, rows: int, length: int) -> None:
    """Pack documents into `rows` rows of `length` + 1 tokens; a document never runs on into another row."""
    rng = Random(seed)
    ids = np.zeros((rows, length + 1), dtype=np.uint16)
    weights = np.zeros((rows, length + 1), dtype=np.float16)
    stream = (tokens.encode(document) for document in documents(rng, pool))
    row = start = 0
    for document, weight in stream:
        if len(document) > length + 1:
            continue
        if start + len(document) > length + 1:
            row, start = row + 1, 0
            if row == rows:
                break
        ids[row, start : start + len(document)] = document
        weights[row, start : start + len(document)] = weight
        start += len(document)
    partial = path.with_name(f".partial-{path.name}")
    with open(partial, "wb") as file:
        np.save(file, ids)
        np.save(file, weights)
    partial.rename(path)


def sample_texts(seed: int, pool: Pool, count: int) -> list[str]:
    """Whole documents as text: what the tokenizer is trained on."""
    return ["".join(text for text, _ in document) for document in islice(documents(Random(seed), pool), count)]
