"""Trains the demo base's sentencepiece tokenizer, with the same settings as Mistral's."""

from __future__ import annotations

from pathlib import Path

import sentencepiece


def train_tokenizer(texts: list[str], target: Path, *, vocabulary: int) -> None:
    """BPE with byte fallback, digits split, dummy prefix, no normalization; ids 0, 1, 2 are unk, BOS, EOS."""
    lines = [line for text in texts for line in text.split("\n") if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(target.with_suffix("")),
        model_type="bpe",
        vocab_size=vocabulary,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        character_coverage=0.9995,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=8,
        minloglevel=1,
    )
