from __future__ import annotations

import bz2
import random
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tars import CONTENT, NAMES, Member, fix_checksum, good_tar, member, raw_header, wanted, write_members

from sqlora.errors import SqloraError
from sqlora.fetch.archive import extract, is_tar

END = bytes(1024)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    return tmp_path


def problem(call: Callable[[], object]) -> SqloraError:
    with pytest.raises(SqloraError) as caught:
        call()
    assert caught.value.next_step.endswith(".")
    return caught.value


def extracted(source: Path, **limits: int) -> dict[str, bytes]:
    extract(source, NAMES, Path("out"), **limits)
    return {path.name: path.read_bytes() for path in Path("out").iterdir()}


def damage(content: bytes) -> str:
    """What is said about a file of this content."""
    path = Path("archive").absolute()
    path.write_bytes(content)
    error = problem(lambda: extracted(path))
    assert error.where == str(path)
    assert "truncated or damaged" in error.found
    return error.found


# --- good archives --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tars_of_any_compression(here: Path, mode: str) -> None:
    path = good_tar(here / "archive", mode)
    assert is_tar(path)
    assert extracted(path) == CONTENT


@pytest.mark.parametrize("place", ["", "data"])
def test_folders(here: Path, place: str) -> None:
    (here / "source" / place).mkdir(parents=True)
    for name, content in CONTENT.items():
        (here / "source" / place / name).write_bytes(content)
    assert extracted(here / "source") == CONTENT
    (here / "out/b.json").write_bytes(b"changed")
    assert (here / "source" / place / "b.json").read_bytes() == b"{}"


def test_other_members_stay_in_the_tar(here: Path) -> None:
    path = write_members(here / "x.tar", member("x/c.txt", b"c"), *wanted(), member("x/._a.bin", b"d"))
    assert extracted(path) == CONTENT


@pytest.mark.parametrize("style", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(here: Path, style: int) -> None:
    with tarfile.open(here / "x.tar", "w", format=style) as archive:
        for name, content in CONTENT.items():
            archive.addfile(*member(f"{'folder/' * 60}ä/{name}", content))
    assert extracted(here / "x.tar") == CONTENT


# --- members that are refused, missing or there twice ---------------------------------------------------------------


@pytest.mark.parametrize(
    "unsafe",
    [
        member("../a.bin", b"evil"),
        member("x/../../a.bin", b"evil"),
        member("/tmp/a.bin", b"evil"),
        member("x/a.bin", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("x/a.bin", type=tarfile.LNKTYPE, linkname="b.json"),
        member("x/a.bin", type=tarfile.FIFOTYPE),
        member("x/a.bin", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("x/a.bin", type=tarfile.DIRTYPE),
        member("x/a.bin", type=tarfile.GNUTYPE_SPARSE),
        member(
            "x/a.bin",
            b"1\n0\n4\n" + bytes(506) + b"evil",
            pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
        ),
        member("x/a.bin", b"evil", pax_headers={"GNU.sparse.map": "0,4", "GNU.sparse.size": "9"}),
    ],
    ids=[
        "climbing",
        "climbing inside",
        "absolute",
        "symlink",
        "hard link",
        "fifo",
        "device",
        "folder",
        "sparse",
        "pax sparse",
        "old sparse",
    ],
)
def test_unsafe_members_are_refused(here: Path, unsafe: Member) -> None:
    archive = write_members(here / "x.tar", member("b.json", b"{}"), unsafe)
    error = problem(lambda: extracted(archive))
    assert f"refused as a link, a sparse file or a path out of the archive: {unsafe[0].name}" in error.found
    assert not (here / "out/a.bin").exists()
    assert sorted(path.name for path in here.iterdir()) == ["out", "x.tar"]
    # Beside a good one it is ignored.
    unsafe[1].seek(0)
    assert extracted(write_members(here / "y.tar", unsafe, *wanted())) == CONTENT


def test_all_missing_files_are_listed_with_what_there_was(here: Path) -> None:
    error = problem(lambda: extracted(write_members(here / "x.tar", member("x/readme"), member("x/a.bin.sha"))))
    assert error.where == str(here / "x.tar")
    assert error.found == "no a.bin, no b.json among x/readme, x/a.bin.sha"
    (here / "empty").mkdir()
    assert problem(lambda: extracted(here / "empty")).found == "no a.bin, no b.json among no file at all"


def test_names_are_shown_safely(here: Path) -> None:
    many = [member(f"\x1b[2J{number}{'x' * 2000}") for number in range(30)]
    found = problem(lambda: extracted(write_members(here / "x.tar", *many))).found
    assert "\x1b" not in found
    assert len(found) < 7000
    assert found.endswith("…")


def test_a_name_that_occurs_twice(here: Path) -> None:
    archive = write_members(here / "x.tar", member("x/a.bin", b"1"), member("y/a.bin", b"2"), member("b.json"))
    assert problem(lambda: extracted(archive)).found.startswith("2 a.bin among")
    for place in ("one", "two"):
        (here / "source" / place).mkdir(parents=True)
        (here / "source" / place / "a.bin").touch()
    (here / "source/b.json").touch()
    assert problem(lambda: extracted(here / "source")).found.startswith("2 a.bin among")


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_truncated_and_damaged_tars(here: Path, mode: str) -> None:
    whole = good_tar(here / "archive", mode).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    damaged = [whole[:300], whole[: len(whole) // 2], b"", b"no tar at all" * 100]
    for content in damaged if mode == "w" else [*damaged, bytes(flipped), whole[:-1]]:
        damage(content)


@pytest.mark.parametrize("compress", [bytes, bz2.compress])
def test_tar_cut_between_two_members_or_inside_its_end(here: Path, compress: Callable[[bytes], bytes]) -> None:
    whole = write_members(here / "x.tar", member("a.bin", b"x" * 512), member("b.json", b"{}")).read_bytes()
    for size in (1024, 2048, 2048 + 100, 2048 + 512):
        assert "truncated, as the two zero blocks at its end are missing" in damage(compress(whole[:size]))
    Path("archive").write_bytes(compress(whole[: 2048 + 1024]))
    assert extracted(Path("archive")) == {"a.bin": b"x" * 512, "b.json": b"{}"}


def test_member_larger_than_the_disk(here: Path) -> None:
    info, _ = member("a.bin")
    info.size = 1 << 60
    (here / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 10240)
    error = problem(lambda: extracted(here / "x.tar"))
    assert "free disk space" in error.found
    assert error.expected.startswith("1152921504.6 GB")
    assert not (here / "out/a.bin").exists()


def test_full_disk_of_a_real_size(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert "0.0 GB of free disk space" in problem(lambda: extracted(good_tar(here / "x.tar"))).found


def pax(record: bytes, kind: bytes = b"x") -> bytes:
    return raw_header("pax", 512, kind=kind) + record.ljust(512, b"\0")


NEGATIVE = "a negative size|invalid offset|a damaged header"  # newer Pythons notice it themselves
HOSTILE = {
    "negative size": (raw_header("c", b"\xff" * 12), NEGATIVE),
    "negative size of a block": (raw_header("c", b"\xff" * 10 + b"\xfc\x00"), NEGATIVE),
    "negative size of a directory": (raw_header("c", b"\xff" * 10 + b"\xfc\x00", kind=b"5") * 2, NEGATIVE),
    "size beyond any file": (raw_header("c", b"\x80" + b"\xff" * 11), "more than 1000 GB"),
    "size that is no number": (raw_header("c", b"99999999999\0"), "header"),
    "wrong checksum": (raw_header("c", 0).replace(b"ustar", b"vstar"), "bad checksum|a damaged header"),
    "pax in pax in pax": (raw_header("pax", 0, kind=b"x") * 2000, "headers of more than 65536 bytes"),
    "long name in long name": (raw_header("long", 0, kind=b"L") * 2000, "headers of more than 65536 bytes"),
    "endless pax": (raw_header("pax", b"77777777777\0", kind=b"x"), "headers of more than 65536 bytes"),
    "endless long name": (raw_header("c", b"77777777777\0", kind=b"L"), "headers of more than 65536 bytes"),
    "endless digits": (raw_header("pax", 60 * 1024, kind=b"x") + b"1" * 60 * 1024, "an endless number"),
    "pax records inside each other": (
        raw_header("pax", 60 * 1024, kind=b"x") + b"2 " * (30 * 1024 - 1) + b"x=",
        "a pax record of a wrong length",
    ),
    "pax records without a keyword": (pax(b"5 ab\n" * 100 + b"5 a=\n"), "a pax record of a wrong length"),
    "pax size backwards": (pax(b"16 size=-100000\n") + raw_header("c", 0), NEGATIVE),
    # A global header holds for every member, whatever its own header says.
    "global pax size": (
        pax(b"13 size=9999\n", kind=b"g") + raw_header("a.bin", 0),
        "unexpected end inside a.bin",
    ),
    "sparse backwards": (
        raw_header("c", b"\xff" * 10 + b"\xfc\x00", kind=b"S"),
        "points backwards|invalid offset|a damaged header",
    ),
    "sparse map of letters": (
        pax(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n") + raw_header("c", 512) + b"letters".ljust(512),
        "damaged",
    ),
    "sparse map without an end": (fix_checksum(bytearray(raw_header("c", 0, kind=b"S")[:482] + b"\1" + bytes(29))), ""),
}


@pytest.mark.parametrize(("header", "found"), HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("first", [False, True])
def test_hostile_headers(header: bytes, found: str, first: bool) -> None:
    Path("archive").write_bytes((b"" if first else raw_header("readme", 0)) + header + END)
    assert re.search(found, problem(lambda: extracted(Path("archive"), max_bytes=10**12)).found)
    is_tar(Path("archive"))


def test_sparse_map_that_is_cut() -> None:
    path = Path("archive")
    path.write_bytes(HOSTILE["sparse map without an end"][0])
    assert "damaged" in problem(lambda: extracted(path)).found
    assert not is_tar(path)


def test_random_headers_never_crash(here: Path) -> None:
    rng = random.Random(1)
    whole = good_tar(here / "x.tar").read_bytes()
    small = write_members(here / "y.tar", member("a.bin", b"x", pax_headers={"comment": "c" * 200}), member("b.json"))
    outcomes = set()
    for content in [whole[:2048] + whole[-11264:], small.read_bytes()] * 150:
        broken = bytearray(content)
        for start in range(0, 3072, 512):
            for _ in range(rng.randrange(3)):
                broken[start + rng.randrange(512)] = rng.choice(b"0179 \0\x80\xff=\nxLKSg")
            broken[start : start + 512] = fix_checksum(broken[start : start + 512])
        Path("archive").write_bytes(broken)
        try:
            extracted(Path("archive"))
        except SqloraError as error:
            outcomes.add(error.found[:20])
    assert len(outcomes) > 1


# --- bombs ----------------------------------------------------------------------------------------------------------


def test_bomb_in_a_member_that_nobody_wants(here: Path) -> None:
    path = write_members(here / "x.tar.bz2", member("c", bytes(3 * 10**6)), *wanted(), mode="w:bz2")
    error = problem(lambda: extracted(path, max_bytes=2 * 10**6))
    assert error.where == str(path)
    assert error.found == "more than 0.002 GB when it is decompressed"
    assert list((here / "out").iterdir()) == []
    assert extracted(path, max_bytes=6 * 10**6) == CONTENT


def test_bomb_is_found_by_its_header_or_by_its_bytes(here: Path) -> None:
    # 8 GB announced and a few bytes there: nothing is decompressed for it.
    Path("archive").write_bytes(bz2.compress(raw_header("c", 8 * 10**9) + END))
    assert "more than 4 GB" in problem(lambda: extracted(Path("archive"), max_bytes=4 * 10**9)).found
    # Behind the end of the tar.
    Path("archive").write_bytes(bz2.compress(good_tar(here / "x.tar").read_bytes() + bytes(5 * 10**6)))
    assert "more than 0.004 GB" in problem(lambda: extracted(Path("archive"), max_bytes=4 * 10**6)).found


def test_too_many_members(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_members(here / "x.tar", *wanted(), *(member(str(number)) for number in range(9)))
    monkeypatch.setattr("sqlora.fetch.archive.MAX_MEMBERS", 11)
    assert extracted(path) == CONTENT
    monkeypatch.setattr("sqlora.fetch.archive.MAX_MEMBERS", 10)
    assert problem(lambda: extracted(path)).found == "more than 10 members"
