"""Ctrl-C and SIGTERM end a verb at any point, and its temporary files are removed.

Python raises KeyboardInterrupt between any two steps of the main thread. In the import of a
compiled module this may crash, and in a callback of the garbage collector, such as jax's, it is
dropped. So during such imports, when there is nothing to undo yet, the signal kills the process,
and a dropped interrupt is repeated.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

TERMINATED = 143
AGAIN = 0.02  # seconds until a dropped interrupt is repeated


@contextlib.contextmanager
def interrupts_raised() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt and SIGTERM SystemExit; an ignored signal stays ignored."""
    hook = sys.unraisablehook
    sys.unraisablehook = repeat_dropped
    try:
        with _handled_by(signal.default_int_handler, terminate):
            yield
    finally:
        sys.unraisablehook = hook


@contextlib.contextmanager
def interrupts_kill() -> Iterator[None]:
    """For imports: Ctrl-C and SIGTERM kill the process, without unwinding."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _handled_by(signal.SIG_DFL, signal.SIG_DFL):
        yield


@contextlib.contextmanager
def _handled_by(interrupt: Any, termination: Any) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in zip(before, (interrupt, termination), strict=True):
        if before[number] != signal.SIG_IGN:  # it is for background jobs
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    """Handle SIGTERM by unwinding, so that temporary files are removed."""
    sys.exit(TERMINATED)


def repeat_dropped(dropped: Any) -> None:
    """Repeat the signal of a KeyboardInterrupt or SystemExit that Python dropped."""
    numbers = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}
    number = numbers.get(dropped.exc_type)
    if number is None:
        sys.__unraisablehook__(dropped)
    else:
        threading.Timer(AGAIN, os.kill, (os.getpid(), number)).start()
