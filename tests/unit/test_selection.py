"""Which files of a source make a base model, in either format, from a tar and from a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tars import member, write_members

from sqlora.errors import SqloraError
from sqlora.fetch.archive import extract
from sqlora.fetch.selection import ModelFiles, wanted_of_hub

Files = dict[str, bytes]


def index(*shards: object) -> bytes:
    return json.dumps({"weight_map": {f"w{number}": shard for number, shard in enumerate(shards)}}).encode()


MISTRAL: Files = {"params.json": b"p", "tokenizer.model": b"t", "consolidated.00.pth": b"0"}
SINGLE: Files = {"config.json": b"c", "tokenizer.json": b"t", "model.safetensors": b"w"}
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SHARDED: Files = {
    "config.json": b"c",
    "tokenizer.model": b"t",
    "model.safetensors.index.json": index(ONE, TWO, ONE),
    ONE: b"1",
    TWO: b"2",
}
EXTRAS: Files = {
    "tokenizer.json": b"j",
    "tokenizer_config.json": b"j",
    "special_tokens_map.json": b"j",
    "generation_config.json": b"j",
}


def tar(files: Files, folder: str = "some/model") -> Path:
    return write_members(Path("source.tar"), *(member(f"{folder}/{name}", content) for name, content in files.items()))


def folder(files: Files, below: str = "") -> Path:
    place = Path("source") / below
    place.mkdir(parents=True)
    for name, content in files.items():
        (place / name).write_bytes(content)
    return Path("source")


@pytest.fixture(params=[tar, folder])
def source(request: pytest.FixtureRequest) -> Callable[[Files], Path]:
    """Makes a source of some files, as a tar or as a folder."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    return tmp_path


def extracted(source: Path) -> Files:
    extract(source, ModelFiles(), Path("out"))
    return {path.name: path.read_bytes() for path in Path("out").iterdir()}


def problem(source: Path) -> SqloraError:
    with pytest.raises(SqloraError) as caught:
        extracted(source)
    return caught.value


@pytest.mark.parametrize(
    "files",
    [MISTRAL, MISTRAL | {"consolidated.01.pth": b"1"}, SINGLE, SHARDED, SHARDED | EXTRAS, SINGLE | EXTRAS],
    ids=["mistral", "mistral in two", "single", "shards", "shards and extras", "single and extras"],
)
def test_complete_models(source: Callable[[Files], Path], files: Files) -> None:
    rest = {"README.md": b"r", "pytorch_model.bin": b"b", "consolidated.safetensors": b"x", "vocab.json": b"v"}
    assert extracted(source(files | rest)) == files


def test_both_formats(source: Callable[[Files], Path]) -> None:
    # Mistral's own repositories hold both; tokenizer.model belongs to both.
    assert extracted(source(MISTRAL | SINGLE)) == SINGLE | {"tokenizer.model": b"t"}


def test_half_a_hugging_face_folder_beside_mistrals_format(source: Callable[[Files], Path]) -> None:
    error = problem(source(MISTRAL | {"config.json": b"c"}))
    assert error.found.startswith(
        "for Hugging Face's format no model.safetensors or model.safetensors.index.json; "
        "for Mistral's nothing but that config.json is there among"
    )
    assert "without config.json, in Mistral's" in error.expected


def test_what_is_missing_of_both_formats(source: Callable[[Files], Path]) -> None:
    error = problem(source({"consolidated.02.pth": b"2", "tokenizer_config.json": b"j"}))
    assert error.found.startswith(
        "for Hugging Face's format no config.json, no model.safetensors or model.safetensors.index.json, no "
        "tokenizer.json or tokenizer.model; for Mistral's no params.json, no tokenizer.model, no "
        "consolidated.00.pth, no consolidated.01.pth among "
    )


def test_shards_are_those_that_the_index_names(source: Callable[[Files], Path]) -> None:
    assert extracted(source(SHARDED | {"model-00003-of-00003.safetensors": b"3"})) == SHARDED


def test_missing_shard(source: Callable[[Files], Path]) -> None:
    files = {name: content for name, content in SHARDED.items() if name != TWO}
    assert problem(source(files)).found.startswith(f"for Hugging Face's format no {TWO}; for Mistral's no params.json")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"weight_map": []}',
        b'{"weight_map": {}}',
        index("../evil.safetensors"),
        index(1),
        index(ONE, [TWO]),
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_index_that_is_none(source: Callable[[Files], Path], content: bytes) -> None:
    error = problem(source(SHARDED | {"model.safetensors.index.json": content}))
    assert error.found.startswith("for Hugging Face's format a model.safetensors.index.json that names no shards; for")


def test_files_of_another_model_below_are_left_alone() -> None:
    folder(SHARDED)
    folder({"model.safetensors": b"of a checkpoint", "tokenizer.json": b"of another kind"}, "checkpoint-5")
    assert extracted(Path("source")) == SHARDED


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_files_of_two_folders_are_not_made_one_model(kind: str) -> None:
    weights = {"model.safetensors": SINGLE["model.safetensors"]}
    rest = {name: content for name, content in SINGLE.items() if name not in weights}
    if kind == "folder":
        folder(rest)
        folder(weights, "checkpoint-5")
    else:
        parts = [(f"model/{name}", content) for name, content in rest.items()]
        parts.append(("model/checkpoint-5/model.safetensors", b"w"))
        write_members(Path("source.tar"), *(member(name, content) for name, content in parts))
    with pytest.raises(
        SqloraError, match=r"files that lie in different folders: .*model\.safetensors in .*checkpoint-5"
    ):
        extracted(Path("source.tar") if kind == "tar" else Path("source"))


def test_the_folder_itself_goes_before_what_lies_below() -> None:
    folder(SINGLE)
    folder({"config.json": b"of another", "tokenizer_config.json": b"j"}, "onnx")
    # What lies below may be of another model: nothing of it is taken.
    assert extracted(Path("source")) == SINGLE


def test_one_level_below() -> None:
    assert extracted(folder(SHARDED, "model")) == SHARDED


def test_two_of_a_kind() -> None:
    folder(SINGLE, "one")
    assert problem(folder({"config.json": b"other"}, "two")).found.startswith("2 config.json among")
    members = [member(f"{place}/{name}", content) for place in "ab" for name, content in MISTRAL.items()]
    found = problem(write_members(Path("x.tar"), *members)).found
    assert found.startswith("2 params.json, 2 tokenizer.model, 2 consolidated.00.pth among")


def test_a_users_own_files_are_never_linked() -> None:
    extracted(folder(SINGLE))
    assert (Path("source") / "config.json").stat().st_nlink == 1
    assert {path.stat().st_nlink for path in Path("out").iterdir()} == {1}


def test_what_is_asked_of_the_hub() -> None:
    rest = ["README.md", "onnx/config.json", "pytorch_model.bin"]
    assert set(wanted_of_hub([*MISTRAL, *rest])) == set(MISTRAL)
    assert set(wanted_of_hub([*MISTRAL, *SHARDED, *EXTRAS, *rest])) == {*SHARDED, *EXTRAS}
    assert set(wanted_of_hub([*SINGLE, *SHARDED])) == {*SINGLE, "tokenizer.model"}
    assert wanted_of_hub(rest) == []
