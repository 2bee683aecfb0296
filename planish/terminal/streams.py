"""Standard streams as a user's shell may leave them: closed, full, or without a reader.

A closed one is /dev/null: otherwise the next file that is opened gets its number, and what was
meant for the user goes into that file. What stderr cannot take is dropped, as nobody can be told.
What stdout cannot take is an error, unless its reader went away on purpose.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Any


class Stdout(io.FileIO):
    """Standard output, whose errors say so."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as problem:
            problem.filename = "standard output"
            raise


class Stderr(io.FileIO):
    """Standard error, which drops what it cannot take."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def open_streams() -> None:
    """Open what is closed; to be called before any file is opened."""
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(free, True)
    os.close(free)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  (open to the end)
    if sys.stdout is sys.__stdout__:  # not a caller's
        sys.stdout = _text(Stdout(1, "w", closefd=False), sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(Stderr(2, "w", closefd=False), sys.stderr)


def _text(raw: io.FileIO, like: Any) -> io.TextIOWrapper:
    """A text stream with the properties of another; what it cannot show it escapes."""
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(like, "encoding", "utf-8"),
        errors="backslashreplace",
        line_buffering=raw.fileno() == 2 or raw.isatty(),
    )


def flush_output() -> OSError | None:
    """Flush stdout; where that fails drop what is left, so that it does not fail again at exit.

    Returns what is to be complained of: not a reader that went away.
    """
    try:
        sys.stdout.flush()
    except OSError as problem:
        with contextlib.suppress(OSError), Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
            sys.stdout.flush()
        return None if isinstance(problem, BrokenPipeError) else problem
    return None
