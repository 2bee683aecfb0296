"""system_fingerprint: equal requests to servers of one fingerprint have equal answers.

It is a hash of planish's version, of how it computes, and of the model's files: of the small ones
whole, of weights their size, first and last MiB, since a server would read all of a large model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from planish import __version__
from planish.server.settings import MIB

DIGITS = 16


def fingerprint(model: Path, choices: Iterable[str]) -> str:
    """fp_ and hexadecimal digits, for a model's directory or file."""
    digest = hashlib.sha256("\n".join((__version__, *choices)).encode())
    files = [model] if model.is_file() else sorted(model.iterdir())
    for file in files:
        if file.is_file():
            size = file.stat().st_size
            digest.update(f"{file.name} {size}\n".encode())
            digest.update(ends_of(file, size))
    return f"fp_{digest.hexdigest()[:DIGITS]}"


def ends_of(file: Path, size: int) -> bytes:
    """The first and the last MiB of a file, all of a small one."""
    with file.open("rb") as opened:
        start = opened.read(MIB)
        opened.seek(max(size - MIB, len(start)))
        return start + opened.read(MIB)
