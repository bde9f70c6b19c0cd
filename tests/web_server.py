"""A real HTTP server on this machine that behaves as badly as a test wants."""

from __future__ import annotations

import http.server
import re
import threading
import time
from dataclasses import dataclass, field


@dataclass
class Page:
    """What a path gives; the lists are used up by one entry a request.

    refusals: (status, headers) to answer before anything else.
    cuts: bytes of the body after which the connection drops.
    stall: seconds of silence after a cut instead of dropping at once.
    etags: one for each request, instead of `etag`.
    span: overrides Content-Range; `{total}` is filled in.
    slow: seconds between pieces of 64 KiB.
    tail: sent behind the body of a partial answer, which then does not tell its length.
    """

    body: bytes
    etag: str | None = '"one"'
    modified: str | None = None
    media_type: str = "application/x-tar"
    ranges: bool = True
    length: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    etags: list[str] = field(default_factory=list)
    span: str | None = None
    honours_if_range: bool = True
    stall: float = 0
    slow: float = 0
    tail: bytes = b""


@dataclass
class Request:
    """One that came: its headers and how many bytes of a body went back."""

    path: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0


class WebServer:
    """Serves `pages` by path (without its query) and keeps `requests`."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.requests: list[Request] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                request = Request(self.path, {key.lower(): value for key, value in self.headers.items()})
                outer.requests.append(request)
                _answer(self, outer.pages.get(self.path.partition("?")[0]), request)

            def log_message(self, *_: object) -> None:
                pass

        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.httpd.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.httpd.server_address[1]}"
        threading.Thread(target=self.httpd.serve_forever, args=(0.02,), daemon=True).start()

    def serve(self, path: str, body: bytes, **fields: object) -> str:
        self.pages[path.partition("?")[0]] = Page(body, **fields)  # type: ignore[arg-type]
        return self.url + path

    def close(self) -> None:
        self.httpd.shutdown()
        self.httpd.server_close()


def _answer(handler: http.server.BaseHTTPRequestHandler, page: Page | None, request: Request) -> None:
    if page is None or page.refusals:
        request.status, headers = (404, {}) if page is None else page.refusals.pop(0)
        _head(handler, request.status, {"Content-Length": "0"} | headers)
        return
    etag = page.etags.pop(0) if page.etags else page.etag
    body, headers = page.body, {"Content-Type": page.media_type, "ETag": etag, "Last-Modified": page.modified}
    request.status = 200
    asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
    fits = request.headers.get("if-range", etag or page.modified) in (etag, page.modified) or not page.honours_if_range
    if asked and page.ranges and fits:
        start, total = int(asked[1]), len(body)
        if start >= total:
            request.status = 416
            _head(handler, 416, {"Content-Range": f"bytes */{total}", "Content-Length": "0"})
            return
        span = f"bytes {start}-{total - 1}/{total}"
        request.status, headers["Content-Range"] = 206, page.span.format(total=total) if page.span else span
        body = body[start:] + page.tail
    if page.length and not (page.tail and request.status == 206):
        headers["Content-Length"] = str(len(body))
    _head(handler, request.status, headers | page.headers)
    cut = page.cuts.pop(0) if page.cuts else None
    _send(handler, page, body[:cut], request)
    if cut is not None:
        handler.wfile.flush()
        time.sleep(page.stall)


def _head(handler: http.server.BaseHTTPRequestHandler, status: int, headers: dict[str, str | None]) -> None:
    handler.send_response(status)
    for key, value in headers.items():
        if value is not None:
            handler.send_header(key, value)
    handler.end_headers()


def _send(handler: http.server.BaseHTTPRequestHandler, page: Page, body: bytes, request: Request) -> None:
    piece = 1 << 16
    for start in range(0, len(body), piece):
        try:
            handler.wfile.write(body[start : start + piece])
        except OSError:
            return  # the client has gone
        request.sent += len(body[start : start + piece])
        time.sleep(page.slow)
