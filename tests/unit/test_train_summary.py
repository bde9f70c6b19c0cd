"""What the train stage says at its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from sqlora.train.report import Report
from sqlora.train.run import Trained
from sqlora.train.summary import announce


def trained(step: int, losses: dict[int, float | None]) -> Trained:
    """A run with these validation losses by iteration, which publishes the adapter of one of them."""
    reports = [Report(number, None, loss, loss, loss, None, None, None, 0.1) for number, loss in losses.items()]
    return Trained({}, reports, step, 0, 0, 0.0, 0.0, 0.0, [0.1], 0.1)


def test_the_published_iteration_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    announce(trained(40, {0: 0.6, 20: 0.5, 30: None, 40: 0.1712, 60: 0.2}), Path("artifacts/adapter"))
    output, errors = capsys.readouterr()
    assert output == "published: iteration 40 of 60, validation loss 0.171\n"
    assert not errors


def test_an_untrained_adapter_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    announce(trained(0, {0: 0.6, 20: 5.5, 1040: 7.1}), Path("artifacts/adapter"))
    output, errors = capsys.readouterr()
    assert output == "published: iteration 0 of 1,040, validation loss 0.600\n"
    assert errors.startswith("warning: artifacts/adapter: the adapter is untrained, because no validation had a lower")
    assert errors.endswith(
        "Lower train.learning_rate, or set train.keep: last to publish the last iteration's adapter.\n"
    )
