"""Writes the report: scores, run card, charts, errors and twenty predictions on one self-contained page."""

from __future__ import annotations

from pathlib import Path

from sqlora.params.convert import ConvertParams
from sqlora.params.data import DataParams
from sqlora.params.generate import GenerateParams
from sqlora.params.lora import LoraParams
from sqlora.params.model import ModelParams
from sqlora.params.score import ScoreParams
from sqlora.params.split import SplitParams
from sqlora.params.train import TrainParams
from sqlora.publish import publish_file
from sqlora.report.page import render_page
from sqlora.report.run import Files, read_run
from sqlora.stage import run_stage


def main(
    dataset: Path,
    base: Path,
    adapter: Path,
    scores: Path,
    breakdown: Path,
    training: Path,
    loss: Path,
    summary: Path,
    out: Path,
    model: ModelParams,
    convert: ConvertParams,
    data: DataParams,
    split: SplitParams,
    lora: LoraParams,
    train: TrainParams,
    generate: GenerateParams,
    score: ScoreParams,
) -> None:
    """Write the page `out`; `summary` describes the dataset."""
    params = {"model": model, "convert": convert, "data": data, "split": split}
    params |= {"lora": lora, "train": train, "generate": generate, "score": score}
    files = Files(dataset, {"base": base, "adapter": adapter}, scores, breakdown, training, loss, summary)
    page = render_page(read_run(files, params))
    with publish_file(out) as file:
        file.write_text(page, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    run_stage(main)
