"""Mistral-7B's tokenizer, for benchmarks that prepare tokens."""

from __future__ import annotations

from pathlib import Path


def tokenizer_model(given: Path | None) -> bytes:
    """The bytes of a sentencepiece model: the given file's, or those in mistral-common, which sqlora does not need."""
    if given is None:
        import mistral_common

        given = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
    return given.read_bytes()
