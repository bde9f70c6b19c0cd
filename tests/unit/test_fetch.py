from __future__ import annotations

import hashlib
import http.server
import io
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sqlora.errors import SqloraError
from sqlora.fetch import DOWNLOADS, extract, obtain

NAMES = ("a.bin", "b.json")
CONTENT = {"a.bin": bytes(range(256)) * 9000, "b.json": b"{}"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "out").mkdir()
    return tmp_path


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, io.BytesIO(content)


def tar(path: Path, *members: tuple[tarfile.TarInfo, io.BytesIO], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for info, content in members:
            archive.addfile(info, content)
    return path


def good(path: Path, mode: str = "w") -> Path:
    return tar(path, *(member(f"./some/folder/{name}", content) for name, content in CONTENT.items()), mode=mode)


def no_demo() -> Path:
    raise AssertionError("not the demo")


def fetch(source: object, checksum: str | None = None) -> Path:
    return obtain("model", str(source), checksum=checksum, demo=no_demo)


def problem(call: Callable[[], object]) -> SqloraError:
    with pytest.raises(SqloraError) as caught:
        call()
    return caught.value


def extracted(source: Path) -> dict[str, bytes]:
    extract(source, NAMES, Path("out"))
    return {path.name: path.read_bytes() for path in Path("out").iterdir()}


# --- sources that are paths -----------------------------------------------------------------------------------------


def test_a_path_is_taken_as_it_is(here: Path) -> None:
    assert fetch(good(here / "x.tar")) == here / "x.tar"
    assert obtain("model", "demo", checksum=None, demo=lambda: here / "x.tar") == here / "x.tar"


def test_a_source_that_is_not_there_is_named_absolutely(here: Path) -> None:
    error = problem(lambda: fetch("models/x.tar"))
    assert error.where == str(here / "models/x.tar")
    assert "model.source" in error.next_step


@pytest.mark.parametrize("kind", ["md5", "sha1", "sha256"])
def test_checksum(here: Path, kind: str) -> None:
    path = good(here / "x.tar")
    right = hashlib.new(kind, path.read_bytes()).hexdigest()
    assert fetch(path, f"{kind}:{right}") == path
    assert fetch(path, f"{kind.upper()}:{right.upper()}") == path
    wrong = right[::-1]
    error = problem(lambda: fetch(path, f"{kind}:{wrong}"))
    assert right in error.found
    assert wrong in error.expected
    assert path.exists()  # the user's own file stays


@pytest.mark.parametrize("checksum", ["", "md5:", "md5:12", "sha512:" + "0" * 128, "0" * 32, "md5:" + "g" * 32])
def test_malformed_checksum(here: Path, checksum: str) -> None:
    error = problem(lambda: fetch(good(here / "x.tar"), checksum))
    assert error.where == "params.yaml, model.checksum"
    assert "md5:<32 hexadecimal digits>" in error.expected


def test_checksum_of_a_folder(here: Path) -> None:
    assert "a folder" in problem(lambda: fetch(here, "md5:" + "0" * 32)).found


# --- taking files out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tars_of_any_compression(here: Path, mode: str) -> None:
    assert extracted(good(here / "archive", mode)) == CONTENT


@pytest.mark.parametrize("place", ["", "data"])
def test_folders(here: Path, place: str) -> None:
    (here / "source" / place).mkdir(parents=True)
    for name, content in CONTENT.items():
        (here / "source" / place / name).write_bytes(content)
    assert extracted(here / "source") == CONTENT
    (here / "out/b.json").write_bytes(b"changed")
    assert (here / "source" / place / "b.json").read_bytes() == b"{}"


def test_other_members_stay_in_the_tar(here: Path) -> None:
    members = [member("x/" + name, content) for name, content in CONTENT.items()]
    assert extracted(tar(here / "x.tar", member("x/c.txt", b"c"), *members, member("x/._a.bin", b"d"))) == CONTENT


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
    ],
    ids=["climbing", "climbing inside", "absolute", "symlink", "hard link", "fifo", "device", "folder"],
)
def test_unsafe_members_are_refused(here: Path, unsafe: tuple[tarfile.TarInfo, io.BytesIO]) -> None:
    archive = tar(here / "x.tar", member("b.json", b"{}"), unsafe)
    error = problem(lambda: extracted(archive))
    assert f"refused as a link or a path out of the archive: {unsafe[0].name}" in error.found
    assert not (here / "out/a.bin").exists()
    assert sorted(path.name for path in here.iterdir()) == ["out", "x.tar"]
    # Beside a good one it is ignored.
    unsafe[1].seek(0)
    assert extracted(tar(here / "y.tar", unsafe, *(member("x/" + n, c) for n, c in CONTENT.items()))) == CONTENT


def test_all_missing_files_are_listed_with_what_there_was(here: Path) -> None:
    error = problem(lambda: extracted(tar(here / "x.tar", member("x/readme"), member("x/a.bin.sha"))))
    assert error.where == str(here / "x.tar")
    assert error.found == "no a.bin, no b.json among x/readme, x/a.bin.sha"
    (here / "empty").mkdir()
    assert problem(lambda: extracted(here / "empty")).found == "no a.bin, no b.json among no file at all"


def test_a_name_that_occurs_twice(here: Path) -> None:
    archive = tar(here / "x.tar", member("x/a.bin", b"1"), member("y/a.bin", b"2"), member("b.json"))
    assert problem(lambda: extracted(archive)).found.startswith("2 a.bin among")
    for place in ("one", "two"):
        (here / "source" / place).mkdir(parents=True)
        (here / "source" / place / "a.bin").touch()
    (here / "source/b.json").touch()
    assert problem(lambda: extracted(here / "source")).found.startswith("2 a.bin among")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_truncated_and_damaged_tars(here: Path, mode: str) -> None:
    path = good(here / "archive", mode)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    damaged = [whole[:300], whole[: len(whole) // 2], b"", b"no tar at all" * 100]
    for content in damaged if mode == "w" else [*damaged, bytes(flipped), whole[:-1]]:
        path.write_bytes(content)
        error = problem(lambda: extracted(path))
        assert error.where == str(path)
        assert "truncated or damaged" in error.found


def test_tar_cut_between_two_members(here: Path) -> None:
    path = tar(here / "x.tar", member("a.bin", b"x" * 512), member("b.json", b"{}"))
    path.write_bytes(path.read_bytes()[:1024])
    assert problem(lambda: extracted(path)).found == "no b.json among a.bin"


def test_member_larger_than_the_disk(here: Path) -> None:
    info, _ = member("a.bin")
    info.size = 1 << 60
    (here / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 10240)
    error = problem(lambda: extracted(here / "x.tar"))
    assert "free disk space" in error.found
    assert error.expected.startswith("1152921504.6 GB")
    assert not (here / "out/a.bin").exists()


# --- sources that are URLs ------------------------------------------------------------------------------------------


class Server:
    """Answers each path with a status, headers and a body, and counts the requests."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.requests = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                status, headers, body = outer.answers.get(self.path, (404, {}, b"nothing"))
                self.send_response(status)
                for key, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_address[1]}"
        threading.Thread(target=self.httpd.serve_forever, args=(0.02,), daemon=True).start()

    def serve(self, path: str, body: bytes, *, status: int = 200, **headers: str) -> str:
        self.answers[path] = (status, {key.replace("_", "-"): value for key, value in headers.items()}, body)
        return self.url + path


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.httpd.shutdown()
    server.httpd.server_close()


def leftovers() -> list[Path]:
    return [path for path in DOWNLOADS.rglob("*") if path.is_file()]


def test_a_url_is_downloaded_once(here: Path, server: Server) -> None:
    body = good(here / "x.tar").read_bytes()
    url = server.serve("/some/x.tar?token=1", body)
    path = fetch(url)
    assert path.name == "x.tar"
    assert path.read_bytes() == body
    assert extracted(path) == CONTENT
    assert fetch(url) == path
    assert server.requests == 1
    right = f"sha256:{hashlib.sha256(body).hexdigest()}"
    assert fetch(url, right) != path  # another checksum is another request: the first was not verified
    assert fetch(url, right).read_bytes() == body
    assert server.requests == 2


def test_download_that_does_not_match(here: Path, server: Server) -> None:
    body = good(here / "x.tar").read_bytes()
    error = problem(lambda: fetch(server.serve("/x.tar", body), "md5:" + "0" * 32))
    assert hashlib.md5(body).hexdigest() in error.found
    assert "0" * 32 in error.expected
    assert leftovers() == []


def test_answers_that_are_no_tar(server: Server) -> None:
    assert problem(lambda: fetch(server.url + "/x.tar")).found == "HTTP status 404: Not Found"
    assert "503" in problem(lambda: fetch(server.serve("/busy", b"", status=503))).found
    page = server.serve("/login", b"<html>", Content_Type="text/html; charset=utf-8")
    assert "web page" in problem(lambda: fetch(page)).found
    assert "something else than a tar" in problem(lambda: fetch(server.serve("/text", b"hello" * 999))).found
    assert leftovers() == []


def test_connection_that_breaks_off(here: Path, server: Server) -> None:
    body = good(here / "x.tar").read_bytes()
    url = server.serve("/x.tar", body, Content_Length=str(len(body) + 5))
    assert problem(lambda: fetch(url)).found == f"{len(body)} of {len(body) + 5} bytes before the connection ended"
    assert leftovers() == []
    server.serve("/x.tar", body)
    assert fetch(url).read_bytes() == body


def test_servers_that_do_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.tar"
        assert "refused" in problem(lambda: fetch(url)).found
        silent.listen()
        monkeypatch.setattr("sqlora.fetch.TIMEOUT_SECONDS", 0.2)
        assert "timed out" in problem(lambda: fetch(url)).found


@pytest.mark.parametrize("url", ["ftp://host/x.tar", "hf://owner/name", "http://[bad", "http:///x", "http://a b/x"])
def test_addresses_that_cannot_be_fetched(url: str) -> None:
    error = problem(lambda: fetch(url))
    assert error.where == url
    assert "model.source" in error.next_step


@pytest.mark.parametrize("path", ["/", "/..", "/%2e%2e", "/a%20b", "/.x.tar", "/" + "x" * 300])
def test_odd_names_stay_inside_the_download_folder(here: Path, server: Server, path: str) -> None:
    fetched = fetch(server.serve(path, good(here / "x.tar").read_bytes()))
    assert fetched.resolve().parent.parent == (here / DOWNLOADS).resolve()
