"""Memory that is not there becomes one typed line, whichever library asked for it."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from planish.reference.errors import OutOfMemoryError

SIGNS = re.compile(
    r"RESOURCE_EXHAUSTED|out of memory|bad_alloc|cannot allocate memory", re.IGNORECASE
)
AMOUNT = re.compile(r"allocat\D*(\d+\.?\d*) *([KMGTPE]iB|B|bytes)\b")
ENGINE = "a smaller model, or one of fewer bits"
FORWARD = "fewer tokens"
LOSSES = "a shorter window"
GENERATE = "fewer or shorter prompts, or fewer max_new_tokens"


@contextmanager
def memory_errors(remedy: str) -> Iterator[None]:
    """Raise OutOfMemoryError for what NumPy, XLA or the system say where memory runs out.

    `remedy`: what takes less. Other errors pass, and so does one that is typed already.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError, ValueError) as error:
        if not is_out_of_memory(error):
            raise
        amount = wanted(str(error))
        problem = f"is not enough for {amount} more" if amount else "is not enough"
        raise OutOfMemoryError(problem, name="memory", expected=remedy) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says so by its type or number; XLA's say so in words only."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or SIGNS.search(str(error)) is not None


def wanted(message: str) -> str:
    """How much could not be had, like "977 MiB"; empty where the message does not say."""
    found = AMOUNT.search(message)
    if found is None:
        return ""
    value, unit = float(found[1]), found[2]
    return f"{value:.3g} {unit}" if unit.endswith("iB") else f"{value / 2**20:.0f} MiB"
