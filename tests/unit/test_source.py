from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from tars import good_tar
from web_server import WebServer

from sqlora.errors import SqloraError
from sqlora.fetch.source import obtain


@pytest.fixture(autouse=True)
def here(fetching_folder: Path) -> Path:
    return fetching_folder


def no_demo() -> Path:
    raise AssertionError("not the demo")


def fetch(*sources: object, checksum: str | None = None) -> Path:
    return obtain("model", [str(source) for source in sources], checksum=checksum, demo=no_demo).path


def problem(call: Callable[[], object]) -> SqloraError:
    with pytest.raises(SqloraError) as caught:
        call()
    return caught.value


def digest(path: Path, kind: str) -> str:
    if kind == "gitblob":
        return hashlib.sha1(b"blob %d\0" % path.stat().st_size + path.read_bytes()).hexdigest()
    return hashlib.new(kind, path.read_bytes()).hexdigest()


def test_a_path_is_taken_as_it_is(here: Path) -> None:
    assert fetch(good_tar(here / "x.tar")) == here / "x.tar"
    assert obtain("model", str(here / "x.tar"), checksum=None, demo=no_demo).path == here / "x.tar"
    assert obtain("model", "demo", checksum=None, demo=lambda: here / "x.tar").path == here / "x.tar"


def test_a_source_that_is_not_there_is_named_absolutely(here: Path) -> None:
    error = problem(lambda: fetch("models/x.tar"))
    assert error.where == str(here / "models/x.tar")
    assert error.found == "no such file or folder"
    assert "model.source" in error.next_step


@pytest.mark.parametrize("path", ["x" * 300, "~nobody-of-this-name/x.tar", "file/x.tar"])
def test_paths_that_cannot_be(here: Path, path: str) -> None:
    (here / "file").touch()
    error = problem(lambda: fetch(path))
    assert error.where == str(here / path)
    assert error.found


@pytest.mark.parametrize("kind", ["md5", "sha1", "sha256", "gitblob"])
def test_checksum(here: Path, kind: str) -> None:
    path = good_tar(here / "x.tar")
    right = digest(path, kind)
    assert fetch(path, checksum=f"{kind}:{right}") == path
    assert fetch(path, checksum=f"{kind.upper()}:{right.upper()}") == path
    wrong = right[::-1]
    error = problem(lambda: fetch(path, checksum=f"{kind}:{wrong}"))
    assert right in error.found
    assert wrong in error.expected
    assert path.exists()  # the user's own file stays


def test_gitblob_is_gits_own(here: Path) -> None:
    (here / "empty").touch()  # git hash-object /dev/null
    assert fetch("empty", checksum="gitblob:e69de29bb2d1d6434b8b29ae775ad8c2e48c5391") == Path("empty")


@pytest.mark.parametrize(
    "checksum", ["", "md5:", "md5:12", "sha512:" + "0" * 128, "0" * 32, "md5:" + "g" * 32, "gitblob:" + "0" * 64]
)
def test_malformed_checksum(here: Path, checksum: str) -> None:
    error = problem(lambda: fetch(good_tar(here / "x.tar"), checksum=checksum))
    assert error.where == "params.yaml, model.checksum"
    assert "md5:<32 hexadecimal digits>" in error.expected
    assert "gitblob:<40 hexadecimal digits>" in error.expected


def test_checksum_of_a_folder(here: Path) -> None:
    assert "a folder" in problem(lambda: fetch(here, checksum="md5:" + "0" * 32)).found


# --- several sources ------------------------------------------------------------------------------------------------


def test_the_next_source_is_tried(here: Path, server: WebServer, capsys: pytest.CaptureFixture[str]) -> None:
    body = good_tar(here / "x.tar").read_bytes()
    path = fetch("none.tar", f"{server.url}/gone.tar?key=secret", server.serve("/x.tar", body), server.url + "/never")
    assert path.read_bytes() == body
    assert [request.path for request in server.requests] == ["/gone.tar?key=secret", "/x.tar"]
    told = capsys.readouterr().err
    assert f"{here / 'none.tar'}: no such file or folder; trying the next source" in told
    assert f"{server.url}/gone.tar: HTTP status 404: Not Found; trying the next source" in told
    assert "secret" not in told
    # What is here needs no request, even of the sources before it.
    assert fetch(f"{server.url}/gone.tar?key=secret", server.url + "/x.tar") == path
    assert len(server.requests) == 2


def test_all_sources_fail(here: Path, server: WebServer) -> None:
    error = problem(lambda: fetch("none.tar", server.url + "/gone.tar", checksum="md5:" + "0" * 32))
    assert error.where == "params.yaml, model.source"
    assert error.found == (
        f"2 sources, none of which works; {here / 'none.tar'}: no such file or folder; "
        f"{server.url}/gone.tar: HTTP status 404: Not Found"
    )
    assert "md5:" + "0" * 32 in error.expected
    assert "model.source" in error.next_step
    assert "0 sources" in problem(fetch).found


def test_mirrors_share_what_has_the_same_checksum(here: Path, server: WebServer) -> None:
    body = good_tar(here / "x.tar").read_bytes()
    checksum = f"gitblob:{digest(here / 'x.tar', 'gitblob')}"
    first, second = server.serve("/one/x.tar", body), server.serve("/two/another-name", body)
    server.pages["/one/x.tar"].cuts = [10**6] + [0] * 9
    path = fetch(first, second, checksum=checksum)
    assert path.read_bytes() == body
    last = server.requests[-1]
    assert (last.path, last.status, last.sent) == ("/two/another-name", 206, len(body) - 10**6)
    assert "if-range" not in last.headers  # the other mirror's validator says nothing here
    count = len(server.requests)
    assert fetch(second, checksum=checksum) == path
    assert len(server.requests) == count


def test_a_mirror_with_other_bytes_is_passed_over(here: Path, server: WebServer) -> None:
    body = good_tar(here / "x.tar").read_bytes()
    bad = server.serve("/bad.tar", body[:-1] + b"x")
    good = server.serve("/x.tar", body)
    assert fetch(bad, good, checksum=f"md5:{digest(here / 'x.tar', 'md5')}").read_bytes() == body
    assert [request.status for request in server.requests] == [200, 200]
    assert len(list((here / ".sqlora/quarantine").iterdir())) == 1


def test_the_users_own_mistakes_end_the_search(here: Path, server: WebServer) -> None:
    url = server.serve("/x.tar", good_tar(here / "x.tar").read_bytes())
    assert "the scheme ftp://" in problem(lambda: fetch("ftp://host/x.tar", url)).found
    assert "a folder" in problem(lambda: fetch(here, url, checksum="md5:" + "0" * 32)).found
    assert server.requests == []
