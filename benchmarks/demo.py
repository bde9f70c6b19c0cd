"""The demo's pipeline from nothing in a fresh clone: wall time, peak memory, and the time when nothing changed.

    python benchmarks/demo.py [--profile profiles/demo.yaml] [--source PATH]

Memory is the largest sum over all processes of the run, sampled ten times a second: resident, and without the pages
that processes share with files (USS), which is what cannot be used by others.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Clone, run twice, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", type=Path, default=ROOT / "profiles" / "demo.yaml")
    parser.add_argument("--source", type=Path, help="takes the place of the profile's data.source and its checksum")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name) / "sqlora"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        shutil.copy(arguments.profile, clone / "params.yaml")
        if arguments.source:
            yaml = YAML()
            params = yaml.load(clone / "params.yaml")
            params["data"] |= {"source": str(arguments.source.resolve()), "checksum": None}
            yaml.dump(params, clone / "params.yaml")
        seconds, resident, unique = measure(clone)
        print(f"dvc repro           {seconds:7.1f} s, peak memory {resident:.2f} GB resident, {unique:.2f} GB unshared")
        seconds, _, _ = measure(clone)
        print(f"dvc repro, nothing  {seconds:7.1f} s")
        score = json.loads((clone / "results" / "score.json").read_text())
        for side in ("base", "adapter"):
            shares = ", ".join(f"{k} {v:.1%}" for k, v in score[side].items() if isinstance(v, float))
            print(f"{side:<10} {shares} of {score['examples']}")
        print((clone / "results" / "training.json").read_text())


def measure(clone: Path) -> tuple[float, float, float]:
    """Seconds, and peaks in GB over the process tree, of one `dvc repro`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(clone / "src")}
    started = time.monotonic()
    process = psutil.Popen(["dvc", "repro", "-q"], cwd=clone, env=environment)
    resident = unique = 0
    while process.poll() is None:
        rss = uss = 0
        for member in [process, *process.children(recursive=True)]:
            try:
                memory = member.memory_full_info()
            except psutil.Error:
                continue
            rss, uss = rss + memory.rss, uss + memory.uss
        resident, unique = max(resident, rss), max(unique, uss)
        time.sleep(0.1)
    if process.returncode:
        sys.exit(f"error: dvc repro ended with {process.returncode}")
    return time.monotonic() - started, resident / 1e9, unique / 1e9


if __name__ == "__main__":
    main()
