"""A generation that is killed at any moment goes on to the same predictions, byte for byte."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
import time
from dataclasses import asdict
from pathlib import Path

from sqlora.params.generate import GenerateParams
from sqlora.text import Example
from sqlora.wikisql.form import LogicalForm

PARAMS = GenerateParams(1, 12, "schema", None, workers=1, hostfile=None, backend="auto")
KILLS = 8


def questions() -> list[Example]:
    form = LogicalForm(0, 0, ())
    return [
        Example(f"1-{number}", "where is it " * (number % 5), ("Name", f"Column {number}"), ("text", "real"), form)
        for number in range(160)
    ]


def answer(model: Path, folder: Path) -> None:
    """In a process of its own: generate and write the predictions."""
    os.chdir(folder)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - the process ends soon
    from sqlora.generate.run import generate
    from sqlora.model import load_base
    from sqlora.tokenizer import Tokenizer

    base, _ = load_base(model)
    done = generate(base, Tokenizer(model), questions(), PARAMS, keep=Path(".sqlora/generate/run"))
    Path("partial.jsonl").write_text(json.dumps([asdict(completion) for completion in done]))
    os.replace("partial.jsonl", "predictions.jsonl")


def test_killed_at_random_moments(model_folder: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sqlora.generate.run"])

    def start(folder: Path) -> multiprocessing.process.BaseProcess:
        folder.mkdir(exist_ok=True)
        process = context.Process(target=answer, args=(model_folder, folder))
        process.start()
        return process

    process = start(tmp_path / "whole")
    process.join()
    assert process.exitcode == 0
    expected = (tmp_path / "whole/predictions.jsonl").read_bytes()
    rng, folder, moments = random.Random(5), tmp_path / "killed", set()
    for _ in range(KILLS):
        process = start(folder)
        before = blocks(folder)
        while process.is_alive() and blocks(folder) == before:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.join()
        moments.add(blocks(folder))
        if (folder / "predictions.jsonl").exists():
            break
    process = start(folder)
    process.join()
    assert process.exitcode == 0
    assert (folder / "predictions.jsonl").read_bytes() == expected
    assert len(moments) > 3, moments


def blocks(folder: Path) -> int:
    return len(list((folder / ".sqlora/generate/run").glob("block-*.json")))
