"""Where typed lines are kept between runs: the user's state directory, for the user only.

Source: https://specifications.freedesktop.org/basedir/latest/
"""

from __future__ import annotations

import os
from pathlib import Path

from planish.reference.errors import notice

FILE = "chat_history"


def history_file() -> Path | None:
    """The file, made if it is missing, readable by the user only; None with a notice if that cannot
    be."""
    path = state_directory() / FILE
    if not path.is_absolute():
        notice("history: no home directory is known; typed lines are not kept")
        return None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
    except OSError as problem:
        notice(f"history: {path}: {problem.strerror}; typed lines are not kept")
        return None
    return path


def state_directory() -> Path:
    """planish in $XDG_STATE_HOME or ~/.local/state; a relative path has no effect there."""
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not base.is_absolute():
        base = Path(os.path.expanduser("~"), ".local", "state")  # noqa: PTH111
    return base / "planish"
