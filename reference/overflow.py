"""NumPy's warnings of floats that are too large, which no caller should see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def silence_overflow() -> Iterator[None]:
    """Silence NumPy's warnings: an overflow ends in NaN, which the reader of the result reports."""
    with np.errstate(over="ignore", invalid="ignore"):
        yield
