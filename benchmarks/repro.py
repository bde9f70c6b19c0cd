"""How long `dvc repro` takes when nothing changed: on the demo, and with a sparse file of 14.5 GB beside the model.

    python benchmarks/repro.py [--gigabytes 14.5] [--cache .dvc/cache]

Works in a clone of the last commit with a copy of DVC's cache, which must have the outputs of its dvc.lock (make demo).
The clone is made beside the repository, because the temporary folder may lie in memory.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
AFTER_CONVERT = ("train", "generate_base", "generate_adapter", "split", "score", "report")
# What a repro with nothing to do consists of, in a process of its own.
PARTS = """
import sys, time
started = time.perf_counter()
from dvc.repo import Repo
import dvc.repo.reproduce, dvc.stage.run, dvc.utils.strictyaml, ruamel.yaml
imported = time.perf_counter()
load, spent = ruamel.yaml.YAML.load, []
def timed(*arguments, **options):
    begun = time.perf_counter()
    try:
        return load(*arguments, **options)
    finally:
        spent.append(time.perf_counter() - begun)
ruamel.yaml.YAML.load = timed
Repo(".").reproduce()
ended = time.perf_counter()
print(
    f"imports {imported - started:.2f} s, YAML {sum(spent):.2f} s, the rest {ended - imported - sum(spent):.2f} s",
    file=sys.stderr,
)
"""


def main() -> None:
    """Clone, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=14.5)
    parser.add_argument("--cache", type=Path, default=ROOT / ".dvc" / "cache")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=ROOT.parent, prefix=".repro-") as name:
        clone = Path(name) / "sqlora"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        shutil.copytree(arguments.cache, clone / ".dvc" / "cache")
        dvc(clone, "checkout")
        # Links, or DVC would copy the file and write every byte of it.
        dvc(clone, "config", "--local", "cache.type", "hardlink")
        dvc(clone, "checkout", "--relink")
        dvc(clone, "repro", "--dry")
        report(clone, "demo")
        subprocess.run([sys.executable, "-c", PARTS], cwd=clone, check=True, stdout=subprocess.DEVNULL)
        with open(clone / "artifacts/model/model-99999-of-99999.safetensors", "wb") as file:
            file.truncate(int(arguments.gigabytes * 1e9))
        print(f"dvc commit, which hashes {arguments.gigabytes} GB: {dvc(clone, 'commit', '--force', 'convert'):.1f} s")
        for stage in AFTER_CONVERT:
            dvc(clone, "commit", "--force", stage)
        report(clone, f"with {arguments.gigabytes} GB more")


def report(clone: Path, name: str) -> None:
    """Print the first and the median of five more."""
    first = dvc(clone, "repro")
    times = [dvc(clone, "repro") for _ in range(5)]
    print(f"{name}: dvc repro {first:.2f} s, then {statistics.median(times):.2f} s (median of five)", flush=True)


def dvc(clone: Path, *arguments: str) -> float:
    """Run it; returns seconds."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)
    if done.returncode or "Running stage" in done.stdout:
        sys.exit(
            f"dvc {arguments}: expected that everything is in the cache and nothing runs\n{done.stdout}{done.stderr}"
        )
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
