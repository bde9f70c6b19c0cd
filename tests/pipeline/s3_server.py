"""An S3 server of this machine (moto's, over real HTTP), that can be told to stop answering midway."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = "team"


class _Silent(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing: thousands of lines hide a failed test's own."""


class S3Server:
    """url: of the server. Each folder of its one bucket is a remote."""

    def __init__(self) -> None:
        self._application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Silent)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._left: dict[str, int] = {}
        self._under_way, self._waits = 0, False
        self._lock = threading.Lock()
        self._released = threading.Event()
        self.held = threading.Event()
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self._client = boto3.client("s3", endpoint_url=self.url, aws_access_key_id="a", aws_secret_access_key="b")
        self._client.create_bucket(Bucket=BUCKET)

    def hold(self, method: str, after: int) -> None:
        """Leave requests of that method for objects unanswered, but for the first few; `held` tells when one waits and
        those few are through.
        """
        self._left, self._released = {method: after}, threading.Event()
        self._under_way, self._waits = 0, False
        self.held.clear()

    def release(self) -> None:
        """Answer everything again."""
        self._left = {}
        self._released.set()

    def objects(self, folder: str) -> dict[str, bytes]:
        """Path below a folder of the bucket -> content."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=folder + "/")
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return {key.removeprefix(folder + "/"): self.read(key) for key in keys}

    def read(self, key: str) -> bytes:
        return bytes(self._client.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def write(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=BUCKET, Key=key)

    def close(self) -> None:
        self.release()
        self._server.shutdown()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, left, released = environ["REQUEST_METHOD"], self._left, self._released
        if method not in left or "/files/md5/" not in environ["PATH_INFO"]:
            return self._application(environ, start_response)
        with self._lock:
            left[method] -= 1
            waits = left[method] < 0
            self._waits |= waits
            self._under_way += not waits
            self._tell()
        if waits:
            released.wait(60)
        answer = self._application(environ, start_response)
        with self._lock:
            self._under_way -= not waits
            self._tell()
        return answer

    def _tell(self) -> None:
        if self._waits and not self._under_way:
            self.held.set()
