"""Progress bars with rate and time left, the same for every stage."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress(label: str, *, total: float | None, unit: str, bytes_: bool = False) -> tqdm[Any]:
    """A bar on stderr to be used as a context manager; call `.update(n)`.

    In a log file, where a bar cannot redraw itself, it prints a line every ten seconds instead of ten a second.
    """
    return tqdm(
        desc=label,
        total=total,
        unit=unit,
        unit_scale=bytes_,
        unit_divisor=1024 if bytes_ else 1000,
        mininterval=0.2 if sys.stderr.isatty() else 10.0,
        dynamic_ncols=True,
        leave=True,
    )
