"""Text to tokens and back, with the very ids that the base model was trained on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlora.errors import SqloraError


@dataclass(frozen=True)
class Encoded:
    """tokens: BOS (where the model has one), prompt, completion, EOS; prompt_tokens: how many are BOS and prompt."""

    tokens: tuple[int, ...]
    prompt_tokens: int


class Tokenizer:
    """The tokenizer of a converted model.

    tokenizer.model is read by sentencepiece where there is one, tokenizer.json by the tokenizers library otherwise; the
    conversion has checked that both give the same ids. Special tokens in plain text ("<s>", "<|endoftext|>") are text
    in either case. BOS comes first if the model's own tokenizer puts it there.

    bos: its id, or None where the model's prompts have none; eos: the id that ends every completion.
    """

    def __init__(self, folder: Path) -> None:
        self.bos: int | None
        self.eos: int
        self._encode: Callable[[str], list[int]]
        self._decode: Callable[[Sequence[int]], str]
        if (folder / "tokenizer.model").is_file():
            self.path = folder / "tokenizer.model"
            self._load_sentencepiece()
        else:
            self.path = folder / "tokenizer.json"
            self._load_json(folder / "tokenizer_config.json")

    def encode_prompt(self, prompt: str) -> list[int]:
        """BOS, if the model's prompts have one, and the prompt's tokens."""
        start = [] if self.bos is None else [self.bos]
        return [*start, *self._encode(prompt)]

    def encode_example(self, prompt: str, completion: str) -> Encoded:
        """Tokenize prompt and completion as one text, and find the token at which the completion starts.

        Raises:
            SqloraError: if no token boundary lies between them, so that generation, which is given the prompt alone,
                would not see the tokens that training saw.
        """
        start = self.encode_prompt(prompt)
        tokens = self.encode_prompt(prompt + completion)
        if tokens[: len(start)] != start:
            raise SqloraError(
                self.path,
                found=f"a token that spans prompt and completion: {prompt[-20:]!r} + {completion[:20]!r}",
                expected="a token boundary between them",
                next_step="This base model's tokenizer does not fit the text format; use another base model.",
            )
        return Encoded((*tokens, self.eos), len(start))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of generated tokens (without EOS), less the blank in front and any special token."""
        return self._decode(tokens)

    def _load_sentencepiece(self) -> None:
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_file=str(self.path))
        size = processor.vocab_size()
        self.bos, self.eos = processor.bos_id(), processor.eos_id()
        self._encode = processor.encode
        # An embedding may be padded with rows beyond the vocabulary.
        self._decode = lambda tokens: str(processor.decode([token for token in tokens if token < size]))

    def _load_json(self, config_file: Path) -> None:
        import tokenizers

        config = self._read_config(config_file)
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(self.path))
        except Exception as error:  # noqa: BLE001 - the library raises nothing more special
            raise _damaged(self.path, f"no tokenizer that can be read ({error})") from None
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        eos = _id_of(tokenizer, config.get("eos_token"))
        if eos is None:
            raise _damaged(config_file, f"eos_token {config.get('eos_token')!r}, which is no token")
        bos = _id_of(tokenizer, config.get("bos_token"))
        puts_bos = tokenizer.encode("a", add_special_tokens=True).ids[:1] == [bos]
        self.bos, self.eos = bos if puts_bos else None, eos
        special = {bos, eos} - {None}
        self._encode = lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)
        # sentencepiece leaves out the blank in front of a text; byte-level decoders do not, so it is taken off here.
        word = self._encode("a")
        blank = " " if tokenizer.decode(self._encode("a a")[len(word) :]).startswith(" ") else ""
        self._decode = lambda tokens: str(
            tokenizer.decode([token for token in tokens if token not in special], skip_special_tokens=True)
        ).removeprefix(blank)

    def _read_config(self, path: Path) -> dict[str, Any]:
        for file in (self.path, path):
            if not file.is_file():
                raise _damaged(file, "no such file")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise _damaged(path, f"no readable JSON ({error})") from None
        if not isinstance(config, dict):
            raise _damaged(path, f"a JSON {type(config).__name__}")
        return config


def _id_of(tokenizer: Any, token: object) -> int | None:
    """The id of a special token; None, not the id of the text "None", where there is none."""
    found: int | None = tokenizer.token_to_id(token) if isinstance(token, str) else None
    return found


def _damaged(path: Path, found: str) -> SqloraError:
    return SqloraError(
        path,
        found=found,
        expected="the tokenizer of a converted model",
        next_step="Delete the model's folder and run dvc repro convert.",
    )
