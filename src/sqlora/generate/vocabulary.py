"""A model's vocabulary as llguidance needs it: the bytes of each token, and how a text is cut into tokens."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from llguidance import LLTokenizer, TokenizerWrapper

from sqlora.tokenizer import Tokenizer


@lru_cache(maxsize=2)
def make_vocabulary(tokenizer: Tokenizer, size: int) -> LLTokenizer:
    """The tokens of a model; made once for a tokenizer (0.13 s for 32,000 tokens), however many questions follow.

    Args:
        size: of the model's output, which may be padded with rows that no token has.
    """
    if tokenizer.path.name == "tokenizer.json":
        return LLTokenizer(_with_special(tokenizer), n_vocab=size, eos_token=tokenizer.eos)
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.path))
    return LLTokenizer(TokenizerWrapper(_Sentencepiece(processor, tokenizer.eos)), n_vocab=size)


def _with_special(tokenizer: Tokenizer) -> str:
    """tokenizer.json in which EOS and BOS are special; else EOS would be a word that may stand in any text."""
    content = json.loads(tokenizer.path.read_text(encoding="utf-8"))
    added = {token["id"]: token for token in content["added_tokens"]}
    for text, number in content["model"]["vocab"].items():
        if number in (tokenizer.eos, tokenizer.bos) and number not in added:
            added[number] = {"id": number, "content": text, "single_word": False, "lstrip": False, "rstrip": False}
            added[number]["normalized"] = False
    for number in added.keys() & {tokenizer.eos, tokenizer.bos}:
        added[number]["special"] = True
    content["added_tokens"] = list(added.values())
    return json.dumps(content)


class _Sentencepiece:
    """The attributes that TokenizerWrapper reads."""

    def __init__(self, processor: Any, eos: int) -> None:
        self.eos_token_id = eos
        self.bos_token_id = processor.bos_id()
        tokens = range(processor.vocab_size())
        special = {token for token in tokens if processor.is_control(token) or processor.is_unknown(token)}
        self.special_token_ids = sorted(special)
        self.tokens = [_bytes_of(processor, token, token in special) for token in tokens]
        self._encode = processor.encode
        # sentencepiece puts a blank in front of a text, so a text within another one is encoded behind something.
        self._blank = processor.piece_to_id("▁")
        self._ahead = processor.encode("\n")

    def __call__(self, text: str) -> list[int]:
        if text == " ":
            return [self._blank]
        if text.startswith(" "):
            return list(self._encode(text[1:]))
        return list(self._encode("\n" + text)[len(self._ahead) :])


def _bytes_of(processor: Any, token: int, special: bool) -> bytes:
    piece: str = processor.id_to_piece(token)
    if special:
        return piece.encode()
    if processor.is_byte(token):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("▁", " ").encode()
