"""Downloads that go well, and what of a URL is used and shown."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from tars import CONTENT, NAMES, good_tar
from urllib3.exceptions import MaxRetryError, NewConnectionError
from web_server import WebServer

from sqlora.errors import SqloraError
from sqlora.fetch.archive import extract
from sqlora.fetch.checksum import Checksum, read_checksum
from sqlora.fetch.download import DOWNLOADS, download, is_downloaded
from sqlora.fetch.failure import reason, shown


@pytest.fixture(autouse=True)
def here(fetching_folder: Path) -> Path:
    return fetching_folder


@pytest.fixture
def body(here: Path) -> bytes:
    return good_tar(here / "x.tar").read_bytes()


def fetch(url: str, checksum: str | None = None) -> Path:
    return download("model", url, checksum=read_checksum("model", checksum))


def problem(call: Callable[[], object]) -> SqloraError:
    with pytest.raises(SqloraError) as caught:
        call()
    return caught.value


def test_a_url_is_downloaded_once(server: WebServer, body: bytes) -> None:
    url = server.serve("/some/x.tar?token=1", body)
    assert not is_downloaded(url, None)
    path = fetch(url)
    assert is_downloaded(url, None)
    assert path.name == "x.tar"
    assert path.read_bytes() == body
    Path("out").mkdir()
    extract(path, NAMES, Path("out"))
    assert {file.name: file.read_bytes() for file in Path("out").iterdir()} == CONTENT
    assert fetch(url) == path
    assert len(server.requests) == 1
    assert server.requests[0].headers["accept-encoding"] == "identity"
    right = f"sha256:{hashlib.sha256(body).hexdigest()}"
    assert fetch(url, right) != path  # with a checksum it is another request: the first was not verified
    assert fetch(url, right).read_bytes() == body
    assert len(server.requests) == 2
    left = sorted(file.name for file in DOWNLOADS.rglob("*") if file.is_file())
    assert left == [".lock", ".lock", "x.tar", "x.tar"]


def test_gitblob_of_a_size_that_is_not_announced(server: WebServer, body: bytes) -> None:
    right = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
    url = server.serve("/x.tar", body, length=False)
    assert fetch(url, f"gitblob:{right}").read_bytes() == body
    assert right in problem(lambda: fetch(url, "gitblob:" + "0" * 40)).found


def test_bytes_are_taken_as_they_are(here: Path, server: WebServer) -> None:
    # Some servers call the compression of a .tar.gz the encoding of a tar.
    body = good_tar(here / "x.tar.gz", "w:gz").read_bytes()
    url = server.serve("/x.tar.gz", body, headers={"Content-Encoding": "gzip"})
    assert fetch(url, f"md5:{hashlib.md5(body).hexdigest()}").read_bytes() == body


def test_progress_begins_where_the_download_goes_on(
    server: WebServer, body: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(server.serve("/x.tar", body, cuts=[2 * 10**6]))
    last = capsys.readouterr().err.split("download x.tar:")[-1]
    assert f"{len(body) / 2**20:.2f}M/{len(body) / 2**20:.2f}M" in last


@pytest.mark.parametrize("url", ["ftp://host/x.tar", "hf://owner/name", "http://[bad", "http:///x", "http://a b/x"])
def test_addresses_that_cannot_be_fetched(url: str) -> None:
    error = problem(lambda: fetch(url))
    assert error.where == url
    assert "model.source" in error.next_step


@pytest.mark.parametrize(
    "path", ["/", "/..", "/%2e%2e", "/a%20b", "/.x.tar", "/.lock", "/" + "x" * 300, "/x.part", "/x.part.json.part"]
)
def test_odd_names_stay_inside_the_download_folder(here: Path, server: WebServer, body: bytes, path: str) -> None:
    url = server.serve(path, body, cuts=[10])
    server.pages["/"] = server.pages["/.."] = server.pages[path]  # requests tidies the path
    fetched = fetch(url)
    assert fetched.resolve().parent.parent == (here / DOWNLOADS).resolve()
    assert fetched.read_bytes() == body
    assert fetch(url) == fetched
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://me:pass@host:8080/x.tar?token=1#part", "https://host:8080/x.tar"),
        ("https://me:p@ss@host/a@b/x.tar", "https://host/a@b/x.tar"),
        ("http://me:pass@[bad?x", "http://[bad"),
        ("some/path?with#odd:signs@here", "some/path?with#odd:signs@here"),
    ],
)
def test_secrets_in_an_address_are_not_shown(url: str, safe: str) -> None:
    assert shown(url) == safe


def test_secrets_are_in_no_message(server: WebServer, body: bytes) -> None:
    address = server.url.replace("http://", "http://me:secret@")
    assert "secret" not in str(problem(lambda: fetch(f"{address}/x.tar?token=secret")))
    assert server.requests[0].headers["authorization"]  # and yet it was used
    server.serve("/away", b"", refusals=[(302, {"Location": "ftp://host/x?token=secret"})])
    assert "secret" not in str(problem(lambda: fetch(f"{address}/away?token=secret")))
    # Nor in what is kept for the next run.
    kept = server.serve("/kept.tar?token=secret", body, cuts=[10] + [0] * 5)
    assert "secret" not in str(problem(lambda: fetch(kept)))
    (note,) = DOWNLOADS.rglob("*.json")
    assert "secret" not in note.read_text()


def test_the_reason_is_the_innermost_one() -> None:
    inner = NewConnectionError(None, "Failed to establish: [Errno 111] Connection refused")  # type: ignore[arg-type]
    error = requests.ConnectionError(MaxRetryError(None, "/x?token=secret", inner))  # type: ignore[arg-type]
    assert reason(error) == "[Errno 111] Connection refused"
    assert reason(ValueError()) == "ValueError"


def test_checksum_parts() -> None:
    assert read_checksum("data", None) is None
    assert read_checksum("data", "MD5:" + "A" * 32) == Checksum("md5", "a" * 32)
