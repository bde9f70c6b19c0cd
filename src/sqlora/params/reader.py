"""Reads params.yaml into frozen dataclasses and reports everything that is wrong with it at once."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from sqlora.errors import SqloraError

PARAMS_FILE = Path("params.yaml")


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both included unless `above` is used for an open lower bound."""

    least: float | None = None
    most: float | None = None
    above: float | None = None

    def admits(self, value: float) -> bool:
        # Written so that NaN, which compares false with everything, is never admitted.
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and value - value == 0
        )

    def __str__(self) -> str:
        bounds = [("at least", self.least), ("above", self.above), ("at most", self.most)]
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)


@dataclass(frozen=True)
class OneOf:
    """The only values a key may have."""

    values: tuple[str | int, ...]

    def admits(self, value: str | int) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return "one of " + ", ".join(map(str, self.values))


def read_params(path: Path, sections: Mapping[str, type], *, only: bool = False) -> dict[str, Any]:
    """Read the named sections of a params file.

    Args:
        path: a YAML 1.2 file, read with the reader that DVC uses, so that both see the same values.
        sections: section name -> frozen dataclass. A field's type is its annotation; `Annotated[T, Range(...)]`
            or `Annotated[T, OneOf(...)]` narrows it. Supported: int, float, str, bool, `tuple[T, ...]` (a YAML list
            without repeated items) and unions of these and None.
        only: whether a section that is not named is an error as well.

    Returns:
        Section name -> instance.

    Raises:
        SqloraError: naming every unknown, missing, mistyped and out-of-range key of those sections together.
    """
    document = _load(path)
    problems: list[str] = []
    if only:
        for name in document:
            if name not in sections:
                problems.append(f"{name}: is not a section{_closest(name, sections)}")
    result: dict[str, Any] = {}
    for name, section in sections.items():
        values = document.get(name)
        if not isinstance(values, dict):
            got = "missing" if name not in document else f"{values!r}, which has no keys"
            problems.append(f"{name}: section is {got}; it has the keys {', '.join(_fields(section))}")
            continue
        result[name] = _section(name, section, values, problems)
    if problems:
        raise SqloraError(
            path,
            found=f"{len(problems)} problem{'s' * (len(problems) > 1)}: " + "; ".join(problems),
            expected="the sections and keys that README.md lists under 'Parameters'",
            next_step=f"Edit {path.name}, or start again from a file in profiles/.",
        )
    return result


def _load(path: Path) -> dict[str, Any]:
    try:
        document = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SqloraError(
            path,
            found="no such file",
            expected="the parameters of the run",
            next_step="Run from the top of the repository, or copy a file of profiles/ to params.yaml.",
        ) from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise SqloraError(
            path,
            found=f"no valid YAML ({' '.join(str(error).split())})",
            expected="YAML 1.2",
            next_step="Mend the line that is named, or start again from a file in profiles/.",
        ) from None
    if not isinstance(document, dict):
        raise SqloraError(
            path,
            found=f"a {type(document).__name__} at the top level",
            expected="sections with keys below them",
            next_step="Start again from a file in profiles/.",
        )
    return document


def _section(name: str, section: type, values: dict[str, Any], problems: list[str]) -> Any:
    hints = _fields(section)
    before = len(problems)
    for key in values:
        if key not in hints:
            problems.append(f"{name}.{key}: is not a key{_closest(key, hints)}")
    arguments = {}
    for key, hint in hints.items():
        if key not in values:
            problems.append(f"{name}.{key}: is missing; allowed is {_describe(hint)}")
            continue
        try:
            arguments[key] = _convert(values[key], hint)
        except ValueError:
            problems.append(f"{name}.{key}: is {values[key]!r}; allowed is {_describe(hint)}")
    return section(**arguments) if len(problems) == before else None


def _fields(section: type) -> dict[str, Any]:
    hints = typing.get_type_hints(section, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(section)}


def _closest(name: object, known: Mapping[str, Any]) -> str:
    # difflib is imported only for an error: every stage start pays for what stands at the top.
    import difflib

    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else f"; known are {', '.join(known)}"


def _convert(value: Any, hint: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        inner, *limits = typing.get_args(hint)
        converted = _convert(value, inner)
        if converted is not None and not all(limit.admits(converted) for limit in limits):
            raise ValueError
        return converted
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in typing.get_args(hint):
            return None
        return _first_that_fits(value, [arg for arg in typing.get_args(hint) if arg is not type(None)])
    if origin is tuple:
        if not isinstance(value, list) or not value:
            raise ValueError
        items = tuple(_convert(item, typing.get_args(hint)[0]) for item in value)
        if len(set(items)) < len(items):
            raise ValueError
        return items
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is a subclass of int: `layers: true` must not pass for 1.
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ValueError
    return value


def _first_that_fits(value: Any, hints: list[Any]) -> Any:
    for hint in hints:
        try:
            return _convert(value, hint)
        except ValueError:
            pass
    raise ValueError


def _describe(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        inner, *limits = typing.get_args(hint)
        if any(isinstance(limit, OneOf) for limit in limits):
            return " ".join(str(limit) for limit in limits)
        return _describe(inner) + " " + " ".join(str(limit) for limit in limits)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if arg is type(None) else _describe(arg) for arg in typing.get_args(hint))
    if origin is tuple:
        return f"a list, each item {_describe(typing.get_args(hint)[0])}, each once"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return names[hint]
