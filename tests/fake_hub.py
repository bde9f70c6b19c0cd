"""A small HTTP server that speaks the endpoints of the Hugging Face Hub which its client needs for a snapshot."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from typing import Any

COMMIT = "c0ffee" + "0" * 34


class FakeHub:
    """Serves repositories: owner/name -> file -> content, all at COMMIT and on `main`.

    gated: repositories that refuse. wrong: files whose bytes are not what the listing says.
    requests: (method, path, Range) of those that came.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.wrong: set[str] = set()
        self.requests: list[tuple[str, str, str | None]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.requests.append((self.command, self.path, self.headers.get("Range")))
                outer._answer(self)

            do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

            def log_message(self, *_: object) -> None:
                pass

        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.httpd.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.httpd.server_address[1]}"
        threading.Thread(target=self.httpd.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.httpd.shutdown()
        self.httpd.server_close()

    def _answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = api or file
        name = found[1] if found else ""
        if name not in self.repositories:
            return _send(handler, 404, {"X-Error-Code": "RepoNotFound"})
        if name in self.gated:
            return _send(handler, 403, {"X-Error-Code": "GatedRepo"})
        revision = (api[3] or "main") if api else file[2] if file else ""
        if revision not in ("main", COMMIT):
            return _send(handler, 404, {"X-Error-Code": "RevisionNotFound"})
        files = self.repositories[name]
        if api:
            entries = [_entry(path, content) for path, content in files.items()]
            siblings = [{"rfilename": entry["path"], **entry, "blobId": entry["oid"]} for entry in entries]
            info: Any = {"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
            return _send(
                handler, 200, {"Content-Type": "application/json"}, json.dumps(entries if api[2] == "tree" else info)
            )
        assert file
        return self._file(handler, file[3], files)

    def _file(self, handler: http.server.BaseHTTPRequestHandler, name: str, files: dict[str, bytes]) -> None:
        if name not in files:
            return _send(handler, 404, {"X-Error-Code": "EntryNotFound"})
        body, status = files[name], 200
        headers = {"ETag": f'"{_etag(body, name)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if name in self.wrong:
            body = bytes(len(body))
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", "")):
            status, headers["Content-Range"] = 206, f"bytes {span[1]}-{len(body) - 1}/{len(body)}"
            body = body[int(span[1]) :]
        return _send(handler, status, headers, body)


def _etag(body: bytes, name: str) -> str:
    return hashlib.sha256(body).hexdigest() if name.endswith(".safetensors") else _blob(body)


def _blob(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def _entry(path: str, body: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(body), "oid": _blob(body)}
    if path.endswith(".safetensors"):
        digest = hashlib.sha256(body).hexdigest()
        entry["lfs"] = {"oid": digest, "sha256": digest, "size": len(body), "pointerSize": 130}
    return entry


def _send(
    handler: http.server.BaseHTTPRequestHandler,
    status: int,
    headers: dict[str, str],
    body: str | bytes = b"",
) -> None:
    content = body.encode() if isinstance(body, str) else body
    handler.send_response(status)
    for key, value in (headers | {"Content-Length": str(len(content))}).items():
        handler.send_header(key, value)
    handler.end_headers()
    if handler.command == "GET":
        handler.wfile.write(content)
