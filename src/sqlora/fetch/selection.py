"""Which files of a tar or a folder are wanted, decided by looking at what is there."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_SHARD = re.compile(r"model[\w.-]{0,100}\.safetensors")
_CONSOLIDATED = re.compile(r"consolidated\.[0-9]{2}\.pth")
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_EXTRAS = (*_TOKENIZERS, "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
_MISTRAL = ("params.json", "tokenizer.model")
_MAX_INDEX_BYTES = 1 << 26
_SHOWN = 10


@dataclass(frozen=True)
class Chosen:
    """names: what is wanted of what is there.

    missing: what else should be there, for a message; empty if nothing.
    expected: the rule, for a message.
    """

    names: tuple[str, ...]
    missing: str
    expected: str


class Selection(Protocol):
    """A rule that picks files by their bare names."""

    def matches(self, name: str) -> bool:
        """Whether a file of this name may be wanted, whatever else is there."""

    def choose(self, present: Mapping[str, Path]) -> Chosen:
        """Decide; `present` has the path of a readable copy of each matching file."""


@dataclass(frozen=True)
class AllOf:
    """Exactly these names."""

    names: Collection[str]

    def matches(self, name: str) -> bool:
        return name in self.names

    def choose(self, present: Mapping[str, Path]) -> Chosen:
        missing = ", ".join(f"no {name}" for name in self.names if name not in present)
        return Chosen(tuple(self.names), missing, f"exactly one each of {', '.join(self.names)}")


@dataclass(frozen=True)
class ModelFiles:
    """A base model in Hugging Face's format (config.json, safetensors) or else in Mistral's (params.json, .pth).

    Mistral's own repositories hold both; config.json decides, so that half a Hugging Face folder is never taken for
    something else.
    """

    def matches(self, name: str) -> bool:
        return bool(
            name in ("config.json", _INDEX, *_EXTRAS, *_MISTRAL)
            or _SHARD.fullmatch(name)
            or _CONSOLIDATED.fullmatch(name)
        )

    def choose(self, present: Mapping[str, Path]) -> Chosen:
        names, missing = _hugging_face(present)
        if missing and "config.json" not in present:
            names, missing_of_mistrals = _mistral(present)
            missing = (
                missing_of_mistrals and f"for Hugging Face's format {missing}; for Mistral's {missing_of_mistrals}"
            )
        elif missing:
            missing_of_mistrals = _mistral(present)[1] or "nothing but that config.json is there"
            missing = f"for Hugging Face's format {missing}; for Mistral's {missing_of_mistrals}"
        expected = (
            "a base model in Hugging Face's format (config.json, model.safetensors or the shards that "
            f"{_INDEX} names, tokenizer.json or tokenizer.model) or, without config.json, in Mistral's (params.json, "
            "tokenizer.model, consolidated.00.pth and so on)"
        )
        return Chosen(tuple(names), missing, expected)


def wanted_of_hub(names: Collection[str]) -> list[str]:
    """Which files of a repository of the Hugging Face Hub to download, before any of them can be read."""
    rule = ModelFiles()
    candidates = sorted(name for name in names if rule.matches(name))
    if "config.json" not in candidates:
        return candidates
    shards = [name for name in candidates if _SHARD.fullmatch(name)]
    unwanted = {*shards, _INDEX} - {_SINGLE} if _SINGLE in shards else set()
    return [name for name in candidates if not (name in unwanted or name == "params.json" or name.endswith(".pth"))]


def _hugging_face(present: Mapping[str, Path]) -> tuple[list[str], str]:
    """What is wanted of Hugging Face's format, and in words what of it is missing."""
    missing = [] if "config.json" in present else ["no config.json"]
    names = ["config.json"]
    if _SINGLE in present:
        names.append(_SINGLE)
    elif _INDEX in present:
        shards = _shards(present[_INDEX])
        if not shards:
            missing.append(f"a {_INDEX} that names no shards")
        absent = sorted(shards - present.keys())
        missing += [f"no {name}" for name in absent[:_SHOWN]] + ["…"] * (len(absent) > _SHOWN)
        names += [_INDEX, *sorted(shards)]
    else:
        missing.append(f"no {_SINGLE} or {_INDEX}")
    if not any(name in present for name in _TOKENIZERS):
        missing.append("no tokenizer.json or tokenizer.model")
    return names + [name for name in _EXTRAS if name in present], ", ".join(missing)


def _shards(index: Path) -> set[str]:
    """The files that an index names; none if it is no such index or names something else than shards."""
    try:
        if index.stat().st_size > _MAX_INDEX_BYTES:
            return set()
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return set()
    return shards if all(isinstance(name, str) and _SHARD.fullmatch(name) for name in shards) else set()


def _mistral(present: Mapping[str, Path]) -> tuple[list[str], str]:
    weights = sorted(name for name in present if _CONSOLIDATED.fullmatch(name))
    missing = [f"no {name}" for name in _MISTRAL if name not in present]
    last = int(weights[-1].split(".")[1]) if weights else 0
    missing += [f"no {name}" for name in (f"consolidated.{n:02}.pth" for n in range(last + 1)) if name not in weights]
    return [*_MISTRAL, *weights], ", ".join(missing)
