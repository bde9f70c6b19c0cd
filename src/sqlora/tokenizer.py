"""Text to tokens and back, by sentencepiece alone: its ids are what the base model was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import sentencepiece

from sqlora.errors import SqloraError


@dataclass(frozen=True)
class Encoded:
    """tokens: BOS, prompt, completion, EOS; prompt_tokens: how many of them are BOS and prompt."""

    tokens: tuple[int, ...]
    prompt_tokens: int


class Tokenizer:
    """A sentencepiece model with BOS and EOS."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.model"
        if not path.is_file():
            raise SqloraError(
                path, found="no such file", expected="a sentencepiece model", next_step="Run dvc repro convert."
            )
        self.path = path
        self.processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.bos: int = self.processor.bos_id()
        self.eos: int = self.processor.eos_id()

    def encode_prompt(self, prompt: str) -> list[int]:
        """BOS and the prompt's tokens."""
        return [self.bos, *self.processor.encode(prompt)]

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

    def decode(self, tokens: list[int]) -> str:
        """The text of generated tokens (without EOS)."""
        return str(self.processor.decode(tokens))
