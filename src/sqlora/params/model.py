"""The `model` section: which base model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelParams:
    """source: `demo`, a path to a tar or folder in Mistral's or Hugging Face's format, an http(s) URL of such a tar, or
    `hf://owner/name[@revision]`, a model of the Hugging Face Hub; or a list of these, tried in order.

    checksum: `md5:…`, `sha1:…`, `sha256:…` or `gitblob:…` of the tar, or null for no check.
    """

    source: str | tuple[str, ...]
    checksum: str | None
