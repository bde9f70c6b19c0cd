"""What the fetch stages say when a source fails, without the secrets that an address may carry."""

from __future__ import annotations

import re

from sqlora.errors import SqloraError

_ADDRESS = re.compile(r"\w+://\S*")


class SourceError(SqloraError):
    """A failure of one source; another source of the same thing may still do."""


def download_failed(section: str, url: str, found: str, *, kept: int = 0) -> SourceError:
    """The error of a URL that does not give the tar; `kept` bytes of it are here."""
    again = f"run again, which goes on after the {kept} bytes that are here," if kept else "run again,"
    return SourceError(
        shown(url),
        found=found,
        expected="a tar to download",
        next_step=f"Check the address and the connection and {again} or download it yourself and set "
        f"{section}.source to the path.",
    )


def shown(url: str) -> str:
    """Scheme, host and path of a URL; a path as it is.

    The rest (user, password, query) may be a secret and is not for a log.
    """
    if "://" not in url:
        return url
    return printable(re.sub(r"(?<=://)[^/?#]*@", "", re.split(r"[?#]", url)[0]))


def reason(error: BaseException) -> str:
    """The innermost cause of a failed request; requests and urllib3 wrap it up to three times, address included."""
    while True:
        inner = getattr(error, "reason", None) or next(iter(error.args[-1:]), None)
        if not isinstance(inner, BaseException):
            break
        error = inner
    text = _ADDRESS.sub(lambda match: shown(match[0]), getattr(error, "strerror", None) or str(error))
    # The words before the last colon repeat the address; "[SSL: NAME]" is no such colon.
    return printable(re.split(r": (?![A-Z_]+\])", text)[-1]) or type(error).__name__


def printable(text: str) -> str:
    """Text from elsewhere, safe on a terminal and short enough for a message."""
    clean = "".join(character if character.isprintable() else "?" for character in text)
    return clean if len(clean) <= 300 else clean[:300] + "…"
