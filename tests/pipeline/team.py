"""A team: git repositories that share one DVC remote, in a folder or on S3."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from project import Project
from s3_server import BUCKET, KEYS, S3Server


@dataclass(frozen=True)
class Remote:
    """url: as the user writes it; objects: path below it -> content."""

    url: str
    server: S3Server | None
    objects: Callable[[], dict[str, bytes]]

    @property
    def key(self) -> str:
        """The folder in the bucket."""
        return self.url.removeprefix(f"s3://{BUCKET}/")

    def replace(self, path: str, content: bytes | None) -> None:
        """Put other bytes in an object's place, or delete it."""
        if self.server is None:
            place = Path(self.url) / path
            place.chmod(0o644)
            place.unlink() if content is None else place.write_bytes(content)
        elif content is None:
            self.server.delete(f"{self.key}/{path}")
        else:
            self.server.write(f"{self.key}/{path}", content)

    def use(self, project: Project) -> None:
        """Add it as the default remote."""
        must(project, "dvc", "remote", "add", "--default", "team", self.url)
        if self.server is not None:
            must(project, "dvc", "remote", "modify", "team", "endpointurl", self.server.url)


def folder_remote(folder: Path) -> Remote:
    def objects() -> dict[str, bytes]:
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    return Remote(str(folder), None, objects)


def s3_remote(server: S3Server, name: str, monkeypatch: pytest.MonkeyPatch) -> Remote:
    for key, value in KEYS.items():
        monkeypatch.setenv(key, value)
    for key in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(key, "*")
    return Remote(f"s3://{BUCKET}/{name}", server, lambda: server.objects(name))


def must(project: Project, *command: str) -> str:
    """Run a command that must succeed; returns what it printed."""
    done = project.run(*command)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def fails(project: Project, *command: str) -> str:
    """Run a command that must fail, without a traceback; returns what it printed, with single blanks."""
    done = project.run(*command)
    printed = done.stdout + done.stderr
    assert done.returncode not in (0, None), f"{command}: {printed}"
    assert "Traceback" not in printed
    return " ".join(printed.split())


def copy_of(project: Project, folder: Path) -> Project:
    shutil.copytree(project.folder, folder, symlinks=True)
    return Project(folder)


def commit(project: Project, message: str) -> None:
    if not must(project, "git", "config", "--list").count("user.email=a@example.org"):
        must(project, "git", "config", "user.email", "a@example.org")
        must(project, "git", "config", "user.name", "A")
    must(project, "git", "add", "--all")
    must(project, "git", "commit", "--quiet", "--allow-empty", "--message", message)


def clone(project: Project, folder: Path) -> Project:
    command = ["git", "clone", "--quiet", str(project.folder), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return Project(folder)


def md5_of(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def object_path(md5: str) -> str:
    """Below a remote or DVC's cache."""
    return f"files/md5/{md5[:2]}/{md5[2:]}"


def start(project: Project, *command: str) -> subprocess.Popen[str]:
    """A command in a process group of its own, that leaves nobody waiting for its output."""
    return subprocess.Popen(
        command,
        cwd=project.folder,
        env=project.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def wait_until(reached: Callable[[], bool], seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.001)
