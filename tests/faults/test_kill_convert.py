"""SIGKILL at twenty points of the conversion: nothing half-written is ever seen, and the next run ends the same."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_convert_faults import converting_child, start
from test_fetch_convert_faults import Kitchen
from tiny_model import write_checkpoint

KILLS = 20


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_conversions(tmp_path: Path) -> None:
    kitchen = Kitchen(tmp_path)
    kitchen.params["convert"]["dtype"] = "bfloat16"
    # 30 MB, so that the writing takes long enough to be hit.
    write_checkpoint(tmp_path / "source", dim=512, hidden_dim=1024, n_layers=3)
    started = time.monotonic()
    done = kitchen.convert("bfloat16")
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    target, partial = tmp_path / "artifacts/model", tmp_path / "artifacts/.partial-model"
    expected = hashes(target)
    points = random.Random(20)
    hits = 0
    for number in range(KILLS):
        if target.exists() and number % 2:
            subprocess.run(["rm", "-r", str(target)], check=True)
        stage = start(kitchen)
        if number % 3 == 2:  # the child instead: the stage has to clean up
            child = converting_child(stage)
            time.sleep(points.uniform(0, seconds / 2))
            child.kill()
        else:
            if number % 3 == 1:  # while something half-written is there
                while stage.poll() is None and not any(partial.glob("*.safetensors")):
                    time.sleep(0.002)
                time.sleep(points.uniform(0, 0.1))
            else:
                time.sleep(points.uniform(0, seconds))
            stage.kill()
        stage.communicate()
        hits += stage.returncode != 0
        assert not target.exists() or hashes(target) == expected
        if number % 7 == 6:
            assert kitchen.convert("bfloat16").returncode == 0
            assert hashes(target) == expected
            assert list(target.parent.iterdir()) == [target]
    assert hits > KILLS / 2
