"""A Hugging Face style folder's tokenizer: a sentencepiece model is the truth where there is one, else the JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from sqlora.convert.llama import read_json
from sqlora.convert.tokenizer import check_tokenizer, convert_tokenizer
from sqlora.errors import SqloraError

_NEXT = "Use the tokenizer files that belong to these weights, or another base model."


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids; bos is None for a tokenizer without one."""

    bos: int | None
    eos: int


def convert_tokenizer_folder(source: Path, folder: Path, config: Mapping[str, Any]) -> tuple[SpecialTokens, list[str]]:
    """Put tokenizer.json and tokenizer_config.json, and tokenizer.model where there is one, into `folder`.

    Args:
        source: the model's own folder.
        folder: exists.
        config: of config.json: the vocabulary must fit vocab_size; eos_token_id is taken where nothing else names one.

    Returns:
        The special tokens, and lines that the user should see.

    Raises:
        SqloraError: for a tokenizer that is missing, unreadable, too large for the embedding or without an end token.
    """
    if (source / "tokenizer.model").is_file():
        return _from_sentencepiece(source, folder, config["vocab_size"])
    path = source / "tokenizer.json"
    tokenizer = read_tokenizer(path)
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if not 0 <= largest < config["vocab_size"]:
        raise SqloraError(
            path,
            found=f"token ids up to {largest}",
            expected=f"ids below {config['vocab_size']}, the vocab_size in config.json",
            next_step=_NEXT,
        )
    settings, texts = _special_texts(source)
    eos = _eos(tokenizer, texts, config, path)
    bos = _id(tokenizer, texts.get("bos_token"))
    shutil.copyfile(path, folder / "tokenizer.json")
    # The class that takes tokenizer.json as it is; others rebuild parts of it by rules of their own.
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": tokenizer.id_to_token(eos)}
    if bos is not None:
        settings["bos_token"] = tokenizer.id_to_token(bos)
    settings.pop("auto_map", None)
    _write_settings(folder, settings)
    template = source / "chat_template.jinja"
    if template.is_file():
        shutil.copyfile(template, folder / template.name)
    return SpecialTokens(bos, eos), []


def read_tokenizer(path: Path) -> Tokenizer:
    """Read tokenizer.json; raises SqloraError for one that is missing or that the library refuses."""
    if not path.is_file():
        raise SqloraError(path, found="no such file", expected="tokenizer.json or tokenizer.model", next_step=_NEXT)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises nothing more special
        found = " ".join(f"no tokenizer that can be read ({str(error)[:150]})".split())
        raise SqloraError(
            path, found=found, expected="a tokenizer.json of the tokenizers library", next_step=_NEXT
        ) from None


def _from_sentencepiece(source: Path, folder: Path, vocab_size: int) -> tuple[SpecialTokens, list[str]]:
    processor = convert_tokenizer(source / "tokenizer.model", folder, vocab_size=vocab_size, padded=True)
    notes = []
    theirs = source / "tokenizer.json"
    if theirs.is_file():
        tokenizer = read_tokenizer(theirs)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        try:
            check_tokenizer(tokenizer, processor, theirs)
        except SqloraError as difference:
            notes.append(f"{theirs} is replaced by one with exactly sentencepiece's ids: it has {difference.found}")
        else:
            shutil.copyfile(theirs, folder / "tokenizer.json")
    return SpecialTokens(processor.bos_id(), processor.eos_id()), notes


def _special_texts(source: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """tokenizer_config.json, and the texts of bos_token and eos_token that it or special_tokens_map.json names."""
    settings: dict[str, Any] = {}
    texts: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if not (source / name).is_file():
            continue
        content = read_json(source / name, "the tokenizer's settings")
        for key in ("bos_token", "eos_token"):
            token = content.get(key)
            if isinstance(token, dict):
                token = token.get("content")
            if isinstance(token, str):
                texts[key] = token
        if name == "tokenizer_config.json":
            settings = content
    return settings, texts


def _eos(tokenizer: Tokenizer, texts: Mapping[str, str], config: Mapping[str, Any], path: Path) -> int:
    eos = _id(tokenizer, texts.get("eos_token"))
    if eos is None and "eos_token" not in texts:
        given = config.get("eos_token_id")
        first = given[0] if isinstance(given, list) and given else given
        # Ids are 32 bits wide in the library.
        if type(first) is int and 0 <= first < 2**32 and tokenizer.id_to_token(first):
            eos = first
    if eos is None:
        raise SqloraError(
            path,
            found="no end token" + (f" (eos_token {texts['eos_token']!r} is unknown)" if "eos_token" in texts else ""),
            expected="eos_token in tokenizer_config.json or eos_token_id in config.json, and a token of that name",
            next_step=_NEXT,
        )
    return eos


def _id(tokenizer: Tokenizer, token: str | None) -> int | None:
    try:
        return None if token is None else tokenizer.token_to_id(token)
    except UnicodeError:  # half a surrogate pair, which JSON can hold
        return None


def _write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    text = json.dumps(settings, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
