"""Downloads a model's files from the Hugging Face Hub, or from what HF_ENDPOINT names in its place."""

from __future__ import annotations

import errno
import glob
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlora.errors import SqloraError
from sqlora.fetch.checksum import hash_file
from sqlora.fetch.download import RoomFor, key_of, require_space
from sqlora.fetch.failure import SourceError, reason
from sqlora.fetch.places import DOWNLOADS
from sqlora.fetch.selection import wanted_of_hub

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

HUB_DOWNLOADS = DOWNLOADS / "hf"
_ADDRESS = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class _Files:
    """commit: which the revision stands for; sizes and hashes ((kind, digits), where the hub tells) by file name."""

    commit: str
    sizes: dict[str, int]
    hashes: dict[str, tuple[str, str]]


def is_on_hub(source: str) -> bool:
    return source.lower().startswith("hf://")


def snapshot(url: str, room_for: RoomFor) -> Path:
    """Return a folder with the model files of hf://owner/name[@revision], and nothing else of the repository.

    The hub's own client downloads them. It keeps the files that are complete, but begins one that broke off anew, and
    it does not compare the hashes that the hub tells; this does.

    Raises:
        SourceError: if there is no such repository or revision, access is not granted, or the hub cannot be reached.
        SqloraError: if the address is no such address or the disk is too small.
    """
    match = _ADDRESS.fullmatch(url)
    if not match:
        raise SqloraError(
            f"params.yaml, model.source, {url}",
            found="no address of a model",
            expected="hf://owner/name or hf://owner/name@revision",
            next_step="Correct model.source; a commit hash as the revision pins every file.",
        )
    place = _place(url)
    place.mkdir(parents=True, exist_ok=True)
    try:
        files = _listed(match["repository"], match["revision"])
        here = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        size = sum(files.sizes.values())
        require_space(place, match["repository"], max(size - here, 0), *room_for(size))
        _download(match["repository"], files, place)
    except SqloraError:
        raise
    except Exception as error:  # the client lets errors of its HTTP and transfer libraries through
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
            raise
        raise _failed(url, error) from None
    _verify(url, files, place)
    return place


def discard_snapshot(url: str) -> None:
    """Delete what `snapshot` keeps of an address."""
    shutil.rmtree(_place(url), ignore_errors=True)


def _place(url: str) -> Path:
    return HUB_DOWNLOADS / key_of(url, None)


def _listed(repository: str, revision: str | None) -> _Files:
    # Imported here: it takes half a second, and paths and URLs do without it.
    from huggingface_hub import HfApi

    info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    siblings: dict[str, RepoSibling] = {file.rfilename: file for file in info.siblings or []}
    names = wanted_of_hub(siblings)
    if not names:
        raise SourceError(
            f"hf://{repository}",
            found=f"no file of a model among {', '.join(sorted(siblings)[:20]) or 'no file at all'}",
            expected="a base model in Hugging Face's or Mistral's format",
            next_step="Correct model.source.",
        )
    hashes = {}
    for name in names:
        file = siblings[name]
        if file.lfs is not None:
            hashes[name] = ("sha256", file.lfs.sha256)
        elif file.blob_id:
            hashes[name] = ("gitblob", file.blob_id)
    return _Files(info.sha or revision or "main", {name: siblings[name].size or 0 for name in names}, hashes)


def _download(repository: str, files: _Files, place: Path) -> None:
    from huggingface_hub import snapshot_download

    for path in place.iterdir():  # what an earlier run took for wanted, of another commit
        if path.is_file() and path.name not in files.sizes:
            path.unlink()
    for path in place.glob(".cache/huggingface/download/**/*.incomplete"):  # a killed client's, which none reads again
        path.unlink()
    snapshot_download(
        repository, revision=files.commit, local_dir=place, allow_patterns=[glob.escape(name) for name in files.sizes]
    )


def _verify(url: str, files: _Files, place: Path) -> None:
    for name, (kind, digits) in files.hashes.items():
        path = place / name
        found = hash_file(path, kind) if path.is_file() else "no file"
        if found != digits:
            path.unlink(missing_ok=True)
            raise SourceError(
                f"{url}, {name}",
                found=f"{kind}:{found}",
                expected=f"{kind}:{digits}, as the hub says",
                next_step="It was deleted; run again to download that file anew.",
            )


def _failed(url: str, error: Exception) -> SourceError:
    from huggingface_hub import errors

    again = "Check the connection (and HF_ENDPOINT, where it is set) and run again; files that are complete are kept."
    found, next_step = reason(error), again
    if isinstance(error, errors.GatedRepoError):
        found = "a gated repository"
        next_step = "Accept its terms on its page, log in with `hf auth login` or set HF_TOKEN, and run again."
    elif isinstance(error, errors.RepositoryNotFoundError):
        found = "no such repository, or a private one"
        next_step = "Correct model.source; for a private one, log in with `hf auth login` or set HF_TOKEN."
    elif isinstance(error, errors.RevisionNotFoundError):
        found, next_step = "no such revision", "Correct what follows the @ in model.source."
    elif isinstance(error, errors.OfflineModeIsEnabled):
        found, next_step = "HF_HUB_OFFLINE is set", "Unset it and run again, or set model.source to a folder."
    elif isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        found = f"HTTP status {error.response.status_code}"
    return SourceError(url, found=found, expected="a model's files to download", next_step=next_step)
