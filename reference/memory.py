"""A lack of memory becomes one typed error, whichever library ran out of it; what is free."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from planish.reference.errors import OutOfMemoryError

SYMPTOMS = re.compile(
    r"RESOURCE_EXHAUSTED|out of memory|bad_alloc|cannot allocate memory", re.IGNORECASE
)
AMOUNT = re.compile(r"allocat\D*(\d+\.?\d*) *([KMGTPE]iB|B|bytes)\b")
ENGINE = "a smaller model, or one of fewer bits"
FORWARD = "fewer tokens"
LOSSES = "a shorter window"
GENERATE = "fewer or shorter prompts, or fewer max_new_tokens"

MEMINFO = Path("/proc/meminfo")
UNKNOWN_MEMORY = 2**33  # bytes taken to be free where the system does not say


@contextmanager
def memory_errors(remedy: str) -> Iterator[None]:
    """Raise OutOfMemoryError for the errors of NumPy, XLA and the system when memory runs out.

    `remedy`: what needs less memory. Other errors pass through, typed ones included.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError, ValueError) as error:
        if not is_out_of_memory(error):
            raise
        amount = requested_amount(str(error))
        problem = f"is not enough for {amount} more" if amount else "is not enough"
        raise OutOfMemoryError(problem, name="memory", expected=remedy) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether the type, errno or text of an error says so; XLA's errors say it only in words."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or SYMPTOMS.search(str(error)) is not None


def requested_amount(message: str) -> str:
    """The amount that could not be allocated, such as "977 MiB"; empty if the message has none."""
    found = AMOUNT.search(message)
    if found is None:
        return ""
    value, unit = float(found[1]), found[2]
    return f"{value:.3g} {unit}" if unit.endswith("iB") else f"{value / 2**20:.0f} MiB"


def free_memory(meminfo: Path = MEMINFO) -> int:
    """Bytes that new work may take, as Linux estimates them; a lot where the system does not say.

    Source: MemAvailable, https://docs.kernel.org/filesystems/proc.html."""
    try:
        lines = meminfo.read_text(encoding="utf-8").splitlines()
        return next(1024 * int(x.split()[1]) for x in lines if x.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return UNKNOWN_MEMORY
