"""Fetches a base model: from the demo, a path, a URL or the Hugging Face Hub, in Mistral's or Hugging Face's format."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from sqlora.errors import SqloraError
from sqlora.fetch.archive import extract
from sqlora.fetch.cache import DvcCache, dvc_cache
from sqlora.fetch.checksum import Checksum, read_checksum
from sqlora.fetch.download import RoomFor, discard_download, key_of, locked
from sqlora.fetch.failure import shown
from sqlora.fetch.hub import discard_snapshot, is_on_hub, snapshot
from sqlora.fetch.kept import MEMBERS, keep, restore
from sqlora.fetch.selection import ModelFiles
from sqlora.fetch.source import obtain_first


def fetch_model(sources: str | Sequence[str], *, checksum: str | None, demo: Callable[[], Path], folder: Path) -> None:
    """Put the files of a base model into `folder`.

    What was downloaded and verified is put into DVC's cache at once and the download deleted: a later run finds it
    there and needs no network. A path of the user's is copied and left as it is.

    Args:
        sources: as for `obtain`, or `hf://owner/name[@revision]`.
        checksum: as for `obtain`.
        demo: makes or names the demo's tar.
        folder: exists and is empty.

    Raises:
        SqloraError: if no source works or what it gives is no complete model of either format.
    """
    several = [sources] if isinstance(sources, str) else list(sources)
    wanted = read_checksum("model", checksum)
    remote = [source for source in several if "://" in source]
    if wanted and any(is_on_hub(source) for source in several):
        raise SqloraError(
            "params.yaml, model.checksum",
            found="a checksum together with an hf:// source",
            expected="a revision, as in hf://owner/name@<commit hash>, which pins every file",
            next_step="Set model.checksum to null and name the commit in model.source.",
        )
    waiting = "another process fetches a model here; waiting for that"
    with locked(MEMBERS, waiting) if remote else nullcontext():
        cache = dvc_cache() if remote else None
        for source in several:
            if "://" not in source:
                if source == "demo" or Path(source).expanduser().exists():
                    break  # it comes before what follows
            elif restore(key_of(source, wanted), folder, cache):
                again = "" if wanted or (is_on_hub(source) and "@" in source) else f"; to ask again, delete {MEMBERS}"
                print(f"{shown(source)}: taken from DVC's cache, where an earlier run put it{again}", file=sys.stderr)
                _discard(source, wanted)
                return
        room_for = _room_for(cache)
        found = obtain_first(
            "model",
            several,
            checksum=wanted,
            demo=demo,
            room_for=room_for,
            others={"hf": lambda url: snapshot(url, room_for)},
        )
        extract(found.path, ModelFiles(), folder, link=is_on_hub(found.source))
        if "://" in found.source and keep(key_of(found.source, wanted), folder, cache):
            _discard(found.source, wanted)


def _room_for(cache: DvcCache | None) -> RoomFor:
    """What must be free beyond a download of `size` bytes, for this stage and the conversion to as many bytes.

    A compressed tar or a conversion to float32 needs more than can be known here.
    """
    if cache is None:
        return lambda size: (2 * size, "the extracted and the converted model")
    if cache.copies:
        return lambda size: (3 * size, "the extracted and the converted model and DVC's copies, when the tar is gone")
    # The tar and the extracted model lie side by side, later the extracted and the converted one.
    return lambda size: (size, "the extracted model, and for the converted one when the tar is gone")


def _discard(source: str, checksum: Checksum | None) -> None:
    if is_on_hub(source):
        discard_snapshot(source)
    else:
        discard_download(source, checksum)
