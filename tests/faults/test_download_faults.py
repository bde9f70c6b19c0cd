"""What the network can do to a download, against a real server."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tars import good_tar
from web_server import WebServer

from sqlora.errors import SqloraError
from sqlora.fetch.archive import extract
from sqlora.fetch.download import DOWNLOADS, QUARANTINE
from sqlora.fetch.source import obtain

CUT = 1_000_000
CHILD = """
import sys
from pathlib import Path
from sqlora.fetch.source import obtain
print(obtain("data", sys.argv[1], checksum=None, demo=Path).path)
"""


@pytest.fixture(autouse=True)
def here(fetching_folder: Path) -> Path:
    return fetching_folder


@pytest.fixture
def body(here: Path) -> bytes:
    return good_tar(here / "x.tar").read_bytes()


def fetch(url: str, checksum: str | None = None, room_for: int = 0) -> Path:
    return obtain(
        "data", url, checksum=checksum, demo=Path, room_for=lambda size: (room_for, f"what is made of {size} bytes")
    ).path


def fails(call: Callable[[], object], url: str) -> SqloraError:
    with pytest.raises(SqloraError) as caught:
        call()
    error = caught.value
    assert error.where == url
    assert error.found
    assert error.expected
    assert "data.source" in error.next_step or "data.checksum" in error.next_step
    return error


def left() -> list[str]:
    return sorted(path.name for path in DOWNLOADS.rglob("*") if path.is_file() and path.name != ".lock")


def md5(body: bytes) -> str:
    return "md5:" + hashlib.md5(body).hexdigest()


def answers(server: WebServer) -> list[tuple[int, int]]:
    return [(request.status, request.sent) for request in server.requests]


# --- connections that break, and how they are continued -------------------------------------------------------------


@pytest.mark.parametrize("validator", [{}, {"etag": None, "modified": "Tue, 24 Nov 2026 02:00:00 GMT"}])
def test_dropped_connection_is_continued(server: WebServer, body: bytes, validator: dict[str, str]) -> None:
    url = server.serve("/x.tar", body, cuts=[CUT, 10, 0, 20], **validator)
    assert fetch(url).read_bytes() == body
    assert answers(server) == [(200, CUT), (206, 10), (206, 0), (206, 20), (206, len(body) - CUT - 30)]
    assert server.requests[1].headers["range"] == f"bytes={CUT}-"
    assert server.requests[1].headers["if-range"] == validator.get("modified", '"one"')
    assert left() == ["x.tar"]


def test_dropped_connection_without_a_size(server: WebServer, body: bytes) -> None:
    chunked = {"Transfer-Encoding": "chunked"}
    url = server.serve("/x.tar", b"10\r\n" + body[:16] + b"\r\n", length=False, headers=chunked, ranges=False)
    error = fails(lambda: fetch(url), url)
    assert error.found == "16 bytes before the connection ended"


def test_a_download_that_only_its_tar_shows_to_be_cut_is_not_used_again(server: WebServer, body: bytes) -> None:
    # Neither a size nor a checksum: what came looks complete.
    url = server.serve("/x.tar", body[: len(body) // 2], length=False)
    path = fetch(url)
    Path("out").mkdir()
    with pytest.raises(SqloraError, match=r"truncated.*moved to \.sqlora/quarantine/x\.tar\. Run again"):
        extract(path, ("a.bin",), Path("out"))
    assert left() == []
    assert (QUARANTINE / "x.tar").exists()
    server.serve("/x.tar", body)
    assert fetch(url).read_bytes() == body


def test_progress_resets_the_count_of_attempts(server: WebServer, body: bytes) -> None:
    url = server.serve("/x.tar", body, cuts=[1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1])
    assert fetch(url).read_bytes() == body
    assert len(server.requests) == 12


def test_five_attempts_in_vain_and_a_later_run(server: WebServer, body: bytes) -> None:
    url = server.serve("/x.tar", body, cuts=[CUT] + [0] * 5)
    error = fails(lambda: fetch(url), url)
    assert error.found == f"{CUT} of {len(body)} bytes before the connection ended"
    assert f"goes on after the {CUT} bytes" in error.next_step
    assert len(server.requests) == 6
    assert left() == ["x.tar.part", "x.tar.part.json"]
    assert fetch(url).read_bytes() == body
    assert answers(server)[-1] == (206, len(body) - CUT)


def test_server_that_cannot_resume_does_not_keep_us_for_ever(server: WebServer, body: bytes) -> None:
    url = server.serve("/x.tar", body, ranges=False, cuts=[CUT] * 99)
    assert "before the connection ended" in fails(lambda: fetch(url), url).found
    assert answers(server) == [(200, CUT)] * 6


def test_nothing_tells_versions_apart_so_it_starts_over(server: WebServer, body: bytes) -> None:
    url = server.serve("/x.tar", body, etag=None, cuts=[CUT])
    assert fetch(url).read_bytes() == body
    assert answers(server) == [(200, CUT), (200, len(body))]
    other = server.serve("/y.tar", body, etag='W/"weak"', cuts=[CUT] * 5 + [0])
    assert "goes on" not in fails(lambda: fetch(other), other).next_step
    assert left() == ["x.tar"]
    # A checksum does.
    third = server.serve("/z.tar", body, etag=None, cuts=[CUT])
    assert fetch(third, md5(body)).read_bytes() == body
    assert answers(server)[-1] == (206, len(body) - CUT)


def test_file_that_changes_between_two_requests(server: WebServer, body: bytes) -> None:
    url = server.serve("/x.tar", body, etags=['"old"', '"new"'], cuts=[CUT])
    assert fetch(url).read_bytes() == body
    assert answers(server) == [(200, CUT), (200, len(body))]
    server.requests.clear()
    # The same with a server that ignores If-Range: 206 with another ETag.
    url = server.serve("/y.tar", body, etags=['"old"', '"new"'], cuts=[CUT], honours_if_range=False)
    assert fetch(url).read_bytes() == body
    assert [status for status, _ in answers(server)] == [200, 206, 200]


@pytest.mark.parametrize(
    "span", ["bytes 0-9/{total}", "bytes 1000000-2000000/7", "bytes 1000000-9/*", "nonsense", None]
)
def test_wrong_content_range_starts_over_once(server: WebServer, body: bytes, span: str | None) -> None:
    url = server.serve("/x.tar", body, span=span, cuts=[CUT] if span else [CUT, CUT])
    assert fetch(url).read_bytes() == body
    assert [status for status, _ in answers(server)] == ([200, 206, 200] if span else [200, 206, 206])
    if span:
        url = server.serve("/y.tar", body, span=span, cuts=[CUT, 0, CUT, 0])
        assert "Content-Range" in fails(lambda: fetch(url), url).found
        assert left() == ["x.tar"]


def test_partial_answer_that_is_too_long_starts_over(server: WebServer, body: bytes) -> None:
    url = server.serve("/x.tar", body, cuts=[CUT], tail=b"more")
    assert fetch(url).read_bytes() == body
    assert [status for status, _ in answers(server)] == [200, 206, 200]


def test_part_that_is_longer_than_the_file(server: WebServer, body: bytes) -> None:
    url = server.serve("/x.tar", body + bytes(10240), cuts=[len(body) + 100] + [0] * 5)
    checksum = md5(body)
    fails(lambda: fetch(url, checksum), url)
    server.serve("/x.tar", body)
    assert fetch(url, checksum).read_bytes() == body
    assert [status for status, _ in answers(server)[-2:]] == [416, 200]


@pytest.mark.parametrize("note", ["", "{}", "[]", '{"total": "x", "url": 1, "validator": 2}', None])
def test_part_with_a_damaged_note(server: WebServer, body: bytes, note: str | None) -> None:
    url = server.serve("/x.tar", body, cuts=[CUT] + [0] * 5)
    fails(lambda: fetch(url), url)
    (path,) = DOWNLOADS.rglob("*.json")
    assert json.loads(path.read_text()) == {"url": url, "validator": '"one"', "total": len(body)}
    path.unlink() if note is None else path.write_text(note)
    assert fetch(url).read_bytes() == body
    assert answers(server)[-1] == (200, len(body))


def test_stalled_connection(server: WebServer, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqlora.fetch.request.TIMEOUT_SECONDS", 0.2)
    url = server.serve("/x.tar", body, cuts=[CUT], stall=1)
    assert fetch(url).read_bytes() == body
    assert answers(server) == [(200, CUT), (206, len(body) - CUT)]
    server.serve("/x.tar", body, cuts=[CUT] + [0] * 5, stall=1, etag=None)
    assert "(timed out)" in fails(lambda: fetch(url, "md5:" + "0" * 32), url).found


def test_servers_that_do_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.tar"
        assert "refused" in fails(lambda: fetch(url), url).found
        silent.listen()
        monkeypatch.setattr("sqlora.fetch.request.TIMEOUT_SECONDS", 0.1)
        assert "timed out" in fails(lambda: fetch(url), url).found


# --- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403, 404, 410, 418, 204, 304])
def test_refusals_are_not_repeated(server: WebServer, status: int) -> None:
    url = server.serve("/x.tar", b"", refusals=[(status, {})] * 9)
    assert f"HTTP status {status}: " in fails(lambda: fetch(url), url).found
    assert len(server.requests) == 1
    assert left() == []


def test_busy_servers_are_asked_again(
    server: WebServer, body: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", lambda seconds: pauses.append(seconds) if seconds else None)
    monkeypatch.setattr("sqlora.fetch.download.BACKOFF_SECONDS", 1.0)
    refusals = [(429, {"Retry-After": "7"}), (503, {"Retry-After": "9999"}), (500, {}), (502, {"Retry-After": "soon"})]
    url = server.serve("/x.tar", body, refusals=refusals)
    assert fetch(url).read_bytes() == body
    assert pauses[:2] == [7, 60]
    assert 3 <= pauses[2] <= 5
    assert 6 <= pauses[3] <= 10
    assert f"{url}: HTTP status 429: Too Many Requests; trying again in 7.0 s" in capsys.readouterr().err


def test_servers_that_stay_busy(server: WebServer) -> None:
    url = server.serve("/x.tar", b"", refusals=[(503, {})] * 9)
    assert fails(lambda: fetch(url), url).found == "HTTP status 503: Service Unavailable"
    assert len(server.requests) == 5


@pytest.mark.parametrize("media_type", ["text/html; charset=utf-8", "TEXT/PLAIN"])
def test_web_page_in_place_of_the_tar(server: WebServer, body: bytes, media_type: str) -> None:
    url = server.serve("/x.tar", body, media_type=media_type)
    assert f"a web page ({media_type.lower().split(';')[0]})" in fails(lambda: fetch(url), url).found
    assert len(server.requests) == 1
    assert left() == []


def test_something_else_than_a_tar(server: WebServer) -> None:
    url = server.serve("/x.tar", b"hello" * 999)
    assert fails(lambda: fetch(url), url).found == "something else than a tar"
    assert left() == []


def test_failed_tls_handshake_is_not_repeated(server: WebServer, capsys: pytest.CaptureFixture[str]) -> None:
    url = server.url.replace("http:", "https:") + "/x.tar"
    assert "a failed TLS handshake" in fails(lambda: fetch(url), url).found
    assert "trying again" not in capsys.readouterr().err


def test_wrong_bytes_go_to_quarantine(server: WebServer, body: bytes) -> None:
    wrong = body[:-1] + b"x"
    url = server.serve("/x.tar", wrong)
    error = fails(lambda: fetch(url, md5(body)), url)
    assert error.found == md5(wrong)
    assert md5(body) in error.expected
    place = QUARANTINE / f"x.tar-{hashlib.md5(wrong).hexdigest()[:8]}"
    assert str(place) in error.next_step
    assert place.read_bytes() == wrong
    assert left() == []
    server.serve("/x.tar", body)
    assert fetch(url, md5(body)).read_bytes() == body
    assert answers(server) == [(200, len(body))] * 2


def test_part_that_was_changed_on_disk_is_noticed(server: WebServer, body: bytes) -> None:
    url = server.serve("/x.tar", body, cuts=[CUT] + [0] * 5)
    fails(lambda: fetch(url, md5(body)), url)
    (part,) = DOWNLOADS.rglob("*.part")
    part.write_bytes(b"x" + part.read_bytes()[1:])
    assert "quarantine" in fails(lambda: fetch(url, md5(body)), url).next_step
    assert fetch(url, md5(body)).read_bytes() == body


def test_too_little_disk(server: WebServer, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5 * 10**9))
    url = server.serve("/x.tar", body)
    with pytest.raises(SqloraError) as caught:
        fetch(url, room_for=6 * 10**9)
    assert caught.value.where.endswith(str(next(DOWNLOADS.iterdir())))
    assert caught.value.found == "5 GB of free disk space"
    assert caught.value.expected.startswith("6 GB: 0.00231 to download x.tar and 6 for what is made of 23")
    assert left() == []
    assert fetch(url, room_for=4 * 10**9).read_bytes() == body


# --- processes ------------------------------------------------------------------------------------------------------


def start(url: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    command = [sys.executable, "-c", CHILD, url]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_part(size: int) -> None:
    for _ in range(2000):
        if any(path.stat().st_size >= size for path in DOWNLOADS.rglob("*.part")):
            return
        time.sleep(0.01)
    raise AssertionError("no part")


def test_killed_process_is_continued_by_the_next_run(server: WebServer, body: bytes) -> None:
    url = server.serve("/x.tar", body, slow=0.1)
    child = start(url)
    wait_for_part(300_000)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    (part,) = DOWNLOADS.rglob("*.part")
    kept = part.stat().st_size
    assert 300_000 <= kept < len(body)
    server.pages["/x.tar"].slow = 0
    assert fetch(url).read_bytes() == body
    assert answers(server)[-1] == (206, len(body) - kept)


def test_two_processes_share_one_download(server: WebServer, body: bytes) -> None:
    url = server.serve("/x.tar", body, slow=0.03)
    first = start(url)
    wait_for_part(1)
    second = start(url)
    outputs = [child.communicate(timeout=60) for child in (first, second)]
    assert outputs[0][0] == outputs[1][0]
    assert Path(outputs[0][0].strip()).read_bytes() == body
    assert len(server.requests) == 1
    assert outputs[1][1].count(f"{url}: another process downloads it; waiting for that") == 1
    assert "waiting" not in outputs[0][1]
