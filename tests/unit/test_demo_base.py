"""The demo base there and back: no bit of its weights is lost."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import torch
from contract import ROOT
from safetensors.torch import load_file

from sqlora.convert.huggingface import huggingface_name
from sqlora.convert.model import convert_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of demo/base.tar."""
    folder: Path = tmp_path_factory.mktemp("base")
    with tarfile.open(ROOT / "demo/base.tar") as tar:
        for member in tar.getmembers():
            content = tar.extractfile(member)
            assert content
            (folder / Path(member.name).name).write_bytes(content.read())
    return folder


def test_round_trip(base: Path, tmp_path: Path) -> None:
    convert_model(base, tmp_path, dtype="bfloat16")
    written = load_file(tmp_path / "model-00001-of-00001.safetensors")
    source = torch.load(base / "consolidated.00.pth", weights_only=True)
    assert len(source) == len(written) == 75
    half = 32 // 2
    for name, original in source.items():
        assert original.dtype == torch.bfloat16
        back = written[huggingface_name(name)]
        if name.endswith(("wq.weight", "wk.weight")):
            # Row i of the first half of a head and row i of the second half were neighbours.
            order = [head + part * half + i for head in range(0, len(back), 32) for i in range(half) for part in (0, 1)]
            back = back[order]
        assert torch.equal(back.view(torch.int16), original.view(torch.int16)), name
