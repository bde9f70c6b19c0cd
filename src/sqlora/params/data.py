"""The `data` section: which questions and tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sqlora.params.reader import Range


@dataclass(frozen=True)
class DataParams:
    """source: `demo`, a path to a tarball or folder in WikiSQL's layout, or an http(s) URL of such a tarball; or a list
    of these, tried in order.

    checksum: `md5:…`, `sha1:…`, `sha256:…` or `gitblob:…` of the tarball, or null for no check.
    demo_seed: what the demo data is generated from; demo_tables: tables of its train part, with five questions each.
    Other sources ignore both.
    """

    source: str | tuple[str, ...]
    checksum: str | None
    demo_seed: Annotated[int, Range(least=0)]
    demo_tables: Annotated[int, Range(least=1)]
