"""One HTTP request for a download or for the rest of one, and what its answer means."""

from __future__ import annotations

import re

import requests
import urllib3

from sqlora.fetch.failure import download_failed, printable, reason

TIMEOUT_SECONDS = 60.0  # without a connection or without a byte
_PAGES = ("text/html", "text/plain", "application/xhtml+xml")


class TryAgainError(Exception):
    """What may go better the next time; `pause` is the server's wish, in seconds."""

    def __init__(self, found: str, pause: float | None = None) -> None:
        super().__init__(found)
        self.pause = pause


class MisfitError(Exception):
    """The server's answer does not continue the part that is here."""


def ask(section: str, url: str, asked: dict[str, str]) -> requests.Response:
    """The response to one request, its status 200 or, if a range was asked for, 206."""
    # Identity: a size and a range of the tar itself are wanted, not of its gzip.
    headers = {"User-Agent": "sqlora", "Accept-Encoding": "identity"} | asked
    try:
        response = requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS)
    except requests.exceptions.SSLError as error:
        raise download_failed(section, url, f"a failed TLS handshake: {reason(error)}") from None
    except (requests.ConnectionError, requests.Timeout) as error:
        raise TryAgainError(reason(error)) from None
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        raise download_failed(section, url, reason(error)) from None
    status = response.status_code
    if status == 200 or (status == 206 and asked):
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if media_type not in _PAGES:
            return response
        response.close()
        raise download_failed(section, url, f"a web page ({media_type})")
    response.close()
    found = f"HTTP status {status}: {printable(response.reason or 'no reason')}"
    if status == 416 and asked:
        raise MisfitError(found)
    if status == 429 or status >= 500:
        raise TryAgainError(found, _wished_pause(response))
    raise download_failed(section, url, found)


def validator_of(response: requests.Response) -> str | None:
    """What If-Range may name: a strong ETag or, for want of that, a date."""
    etag = response.headers.get("ETag", "")
    if re.fullmatch(r'"[!#-~]*"', etag):
        return etag
    date = response.headers.get("Last-Modified", "")
    return date if re.fullmatch(r"[ -~]+", date) else None


def length_of(response: requests.Response) -> int | None:
    length = response.headers.get("Content-Length", "").strip()
    return int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None


def total_of_range(response: requests.Response, asked: dict[str, str], size: int, total: int | None) -> int:
    """The complete size, from a partial answer that continues the `size` bytes of `total` that are here."""
    span = response.headers.get("Content-Range", "none")
    match = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})", span.strip())
    if not match or int(match[1]) != size or total not in (None, int(match[2])):
        raise MisfitError(f"the Content-Range {printable(span)} for bytes from {size} of {total or 'all'}")
    validator = validator_of(response)
    if "If-Range" in asked and validator is not None and validator != asked["If-Range"]:
        raise MisfitError(f"a part of another version, {validator} instead of {asked['If-Range']}")
    return int(match[2])


def _wished_pause(response: requests.Response) -> float | None:
    try:
        return urllib3.Retry().parse_retry_after(response.headers["Retry-After"])
    except (KeyError, ValueError, OverflowError, urllib3.exceptions.HTTPError):
        return None
