"""Where what was fetched lies between runs, relative to the top of the repository."""

from __future__ import annotations

from pathlib import Path

DOWNLOADS = Path(".sqlora/downloads")
QUARANTINE = Path(".sqlora/quarantine")
