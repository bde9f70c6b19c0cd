"""The conversion of a full-size checkpoint beside a plain copy of it: wall time and peak memory.

    python benchmarks/convert.py [--scale 1.0] [--reference-scale 0.25] [--folder DIR]

Measures in one run, each with the source's pages dropped from the cache beforehand (Linux):
  copy       cp and fsync of the weights
  bfloat16   the convert stage as DVC runs it, to bfloat16
  4-bit      the same with convert.quantize 4, group size 64
  reference  load everything, cast, save at once (as mlx-examples/lora did in 2023), at a size that fits, beside ours

Memory is that of all processes of the run together, sampled every 10 ms: resident, and how much of that no file backs,
which the system cannot take back. At full size it needs 30 GB of disk (15 for the source), 45 with the margin that it
asks for, and removes what it wrote.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from make_checkpoint import WEIGHTS, write_checkpoint
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = """
import sys, torch
from safetensors.torch import save_file
state = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
state = {name: tensor.to(torch.bfloat16).clone() for name, tensor in state.items()}
save_file(state, sys.argv[2])
with open(sys.argv[2], "rb") as handle:
    __import__("os").fsync(handle.fileno())
"""


@dataclass(frozen=True)
class Measured:
    """seconds of wall time; peaks in GB: resident, and of that what no file backs (the same where unknown)."""

    seconds: float
    resident: float
    anonymous: float

    def __str__(self) -> str:
        memory = f"peak {self.resident:6.2f} GB resident, {self.anonymous:6.2f} GB not backed by files"
        return f"{self.seconds:7.1f} s   {memory}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--reference-scale", type=float, default=0.25)
    parser.add_argument("--folder", type=Path, default=Path(), help="where the temporary files go")
    arguments = parser.parse_args()
    needed, free = 45e9 * max(arguments.scale, arguments.reference_scale), shutil.disk_usage(arguments.folder).free
    if free < needed:
        sys.exit(f"error: found {free / 1e9:.0f} GB free, expected {needed / 1e9:.0f}. Free some, or lower --scale.")
    with tempfile.TemporaryDirectory(dir=arguments.folder.absolute(), prefix="convert-benchmark-") as name:
        place = Path(name)
        source = new_source(place, arguments.scale)
        size = (source / WEIGHTS).stat().st_size
        print(f"{size / 1e9:.2f} GB of weights, {os.cpu_count()} cores", flush=True)
        copied = copy(source)
        print(f"copy                {copied}   ({size / 1e9 / copied.seconds:.2f} GB/s)", flush=True)
        ours = convert(place, source, None)
        print(f"bfloat16            {ours}   {ours.seconds / copied.seconds:.2f} times the copy", flush=True)
        four = convert(place, source, 4)
        print(f"4-bit, groups of 64 {four}   {four.seconds / copied.seconds:.2f} times the copy", flush=True)
        if arguments.reference_scale != arguments.scale:
            shutil.rmtree(source)
            source = new_source(place, arguments.reference_scale)
            small = convert(place, source, None)
            print(f"{(source / WEIGHTS).stat().st_size / 1e9:.2f} GB of weights")
            print(f"bfloat16            {small}", flush=True)
        out = place / "reference.safetensors"
        drop_cache(source / WEIGHTS)
        print(f"reference           {measure([sys.executable, '-c', REFERENCE, source / WEIGHTS, out], place)}")


def new_source(place: Path, scale: float) -> Path:
    """A checkpoint of that size in a folder of its own."""
    source = place / "source"
    source.mkdir()
    write_checkpoint(source, scale)
    return source


def copy(source: Path) -> Measured:
    """cp of the weights, and fsync."""
    target = source.parent / "copy"
    drop_cache(source / WEIGHTS)
    script = 'cp "$1" "$2" && sync "$2"' if sys.platform == "linux" else 'cp "$1" "$2" && sync'
    result = measure(["sh", "-c", script, "sh", source / WEIGHTS, target], source.parent)
    target.unlink()
    return result


def convert(place: Path, source: Path, bits: int | None) -> Measured:
    """The convert stage, with its own params.yaml."""
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    params["convert"] |= {"dtype": "bfloat16", "quantize": bits, "group_size": 64}
    yaml.dump(params, place / "params.yaml")
    drop_cache(source / WEIGHTS)
    command = [sys.executable, ROOT / "stages/convert.py", "--source-model", source, "--out", place / "model"]
    result = measure(command, place)
    shutil.rmtree(place / "model")
    return result


def measure(command: Sequence[str | Path], folder: Path) -> Measured:
    """Run a command and watch it and its children."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    started = time.monotonic()
    process = psutil.Popen(list(map(str, command)), cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    resident = anonymous = 0
    while process.poll() is None:
        rss = own = 0
        for member in [process, *_children(process)]:
            try:
                memory = member.memory_info()
            except psutil.Error:
                continue
            rss += memory.rss
            # On Linux `shared` is RssFile + RssShmem; nothing here uses shared memory.
            own += memory.rss - getattr(memory, "shared", 0)
        resident, anonymous = max(resident, rss), max(anonymous, own)
        time.sleep(0.01)
    if process.returncode:
        sys.exit(f"error: {command} ended with {process.returncode}: {process.stderr.read()}")
    return Measured(time.monotonic() - started, resident / 1e9, anonymous / 1e9)


def drop_cache(path: Path) -> None:
    """Let the next reader find the file on the disk, not in memory."""
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _children(process: psutil.Popen) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


if __name__ == "__main__":
    main()
