"""The `model` section: which base model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelParams:
    """source: `demo`, a path to a Mistral-format tar or folder, or an http(s) URL of such a tar.

    checksum: `md5:…`, `sha1:…`, `sha256:…` or `gitblob:…` of the tar, or null for no check.
    """

    source: str
    checksum: str | None
