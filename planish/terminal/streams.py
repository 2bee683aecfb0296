"""Standard streams that are closed, full, or have lost their reader.

A closed stream is replaced by /dev/null: otherwise the next file that is opened gets its
descriptor, and output for the user goes to that file. What stderr cannot write is dropped, as there
is no other place for it. What stdout cannot write is an error, unless its reader closed the pipe.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Any


class Stdout(io.FileIO):
    """Standard output, which names itself in errors."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as problem:
            problem.filename = "standard output"
            raise


class Stderr(io.FileIO):
    """Standard error, which drops what it cannot write."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def open_streams() -> None:
    """Open the streams that are closed; call this before any file is opened."""
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
    """A text stream with another's encoding; escapes what that cannot encode."""
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(like, "encoding", "utf-8"),
        errors="backslashreplace",
        line_buffering=raw.fileno() == 2 or raw.isatty(),
    )


def flush_output() -> OSError | None:
    """Flush stdout; if that fails, drop the rest, so that it does not fail again at exit.

    Returns the error to report, if any: a closed pipe is none.
    """
    try:
        sys.stdout.flush()
    except OSError as problem:
        with contextlib.suppress(OSError), Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
            sys.stdout.flush()
        return None if isinstance(problem, BrokenPipeError) else problem
    return None
