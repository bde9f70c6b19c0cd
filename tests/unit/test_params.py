from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from contract import ROOT

from sqlora.errors import SqloraError
from sqlora.params.all import check_params
from sqlora.params.reader import OneOf, Range, read_params


@dataclass(frozen=True)
class Section:
    count: Annotated[int, Range(least=1, most=9)]
    rate: Annotated[float, Range(above=0)]
    name: str
    flag: bool
    kind: Annotated[str, OneOf(("a", "b"))]
    note: str | None
    items: tuple[Annotated[str, OneOf(("x", "y"))], ...]
    source: str | tuple[str, ...]


GOOD = "section:\n  count: 3\n  rate: 1e-5\n  name: n\n  flag: true\n  kind: a\n  note: null\n  items: [x, y]\n"
GOOD += "  source: s\n"


def read(tmp_path: Path, text: str, **options: bool) -> Section:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    section = read_params(path, {"section": Section}, **options)["section"]
    assert isinstance(section, Section)
    return section


def test_reads_every_type(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD) == Section(3, 1e-5, "n", True, "a", None, ("x", "y"), "s")


def test_a_text_or_a_list(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD.replace("source: s", "source: [t, s]")).source == ("t", "s")


def test_exponents_without_a_point_are_numbers_and_whole_numbers_are_rates(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD.replace("1e-5", "2e3")).rate == 2000.0
    assert read(tmp_path, GOOD.replace("1e-5", "1")).rate == 1.0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("count: 3", "count: 0", "section.count: is 0; allowed is a whole number at least 1 and at most 9"),
        ("count: 3", "count: 10", "section.count: is 10"),
        ("count: 3", "count: 3.5", "section.count: is 3.5; allowed is a whole number"),
        ("count: 3", "count: true", "section.count: is True"),
        ("count: 3", "count: '3'", "section.count: is '3'"),
        ("rate: 1e-5", "rate: 0", "section.rate: is 0; allowed is a number above 0"),
        ("rate: 1e-5", "rate: .nan", "section.rate: is nan"),
        ("rate: 1e-5", "rate: .inf", "section.rate: is inf"),
        ("rate: 1e-5", "rate: fast", "section.rate: is 'fast'"),
        ("name: n", "name: 5", "section.name: is 5; allowed is a text"),
        ("flag: true", "flag: 1", "section.flag: is 1; allowed is true or false"),
        # YAML 1.2 has no `yes`: what PyYAML takes for true is a text here, as it is for DVC.
        ("flag: true", "flag: yes", "section.flag: is 'yes'"),
        ("kind: a", "kind: c", "section.kind: is 'c'; allowed is one of a, b"),
        ("note: null", "note: 3", "section.note: is 3; allowed is a text or null"),
        (
            "items: [x, y]",
            "items: [x, x]",
            "section.items: is ['x', 'x']; allowed is a list, each item one of x, y, each",
        ),
        ("source: s", "source: 3", "section.source: is 3; allowed is a text or a list, each item a text, each once"),
        ("source: s", "source: [a, 3]", "section.source: is ['a', 3]; allowed is a text or a list"),
        ("source: s", "source: [a, b, a]", "section.source: is ['a', 'b', 'a']; allowed is a text or a list"),
        ("source: s", "source: []", "section.source: is []"),
        ("source: s", "source: null", "section.source: is None; allowed is a text or a list"),
        ("items: [x, y]", "items: [x, z]", "section.items: is ['x', 'z']; allowed is a list"),
        ("items: [x, y]", "items: []", "section.items: is []"),
        ("items: [x, y]", "items: x", "section.items: is 'x'"),
        ("  count: 3\n", "", "section.count: is missing"),
        ("count: 3", "cuont: 3", "section.cuont: is not a key (did you mean count?)"),
        ("section:", "other:", "section: section is missing"),
        (GOOD, "section: 3\n", "section: section is 3"),
    ],
)
def test_every_mistake_names_the_file_the_key_what_was_got_and_what_is_allowed(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in GOOD
    with pytest.raises(SqloraError) as caught:
        read(tmp_path, GOOD.replace(old, new))
    assert str(tmp_path / "params.yaml") in str(caught.value)
    assert message in str(caught.value)


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    text = GOOD.replace("count: 3", "count: 0").replace("kind: a", "kind: c").replace("name: n", "nmae: n")
    with pytest.raises(SqloraError, match="4 problems") as caught:
        read(tmp_path, text)
    for key in ("section.count", "section.kind", "section.nmae", "section.name: is missing"):
        assert key in str(caught.value)


def test_unknown_sections_are_refused_only_by_the_check_of_the_whole_file(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD + "more:\n  a: 1\n").count == 3
    with pytest.raises(SqloraError, match="more: is not a section"):
        read(tmp_path, GOOD + "more:\n  a: 1\n", only=True)


@pytest.mark.parametrize(("text", "found"), [("a: [1", "no valid YAML"), ("- a\n", "list"), ("", "NoneType")])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, found: str) -> None:
    with pytest.raises(SqloraError, match=found):
        read(tmp_path, text)


def test_a_missing_file_is_an_error_with_a_next_step(tmp_path: Path) -> None:
    with pytest.raises(SqloraError, match=r"no such file.*profiles"):
        read_params(tmp_path / "params.yaml", {"section": Section})


@pytest.mark.parametrize("layers", [0, -1])
def test_no_adapted_layer_is_an_error(tmp_path: Path, layers: int) -> None:
    text = (ROOT / "params.yaml").read_text()
    changed = re.sub(r"^  layers: \d+", f"  layers: {layers}", text, flags=re.MULTILINE)
    assert changed != text
    (tmp_path / "params.yaml").write_text(changed)
    with pytest.raises(SqloraError, match=rf"lora\.layers: is {layers}; allowed is a whole number at least 1"):
        check_params(tmp_path / "params.yaml")


COMMITTED = [ROOT / "params.yaml", *sorted((ROOT / "profiles").glob("*.yaml"))]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_the_committed_files_are_valid(path: Path) -> None:
    check_params(path)


def test_params_yaml_is_the_demo_profile() -> None:
    assert (ROOT / "params.yaml").read_text() == (ROOT / "profiles" / "demo.yaml").read_text()
