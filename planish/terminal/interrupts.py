"""Ctrl-C and SIGTERM end a verb wherever it is, and what it has begun is undone.

Python raises KeyboardInterrupt between any two steps of the main thread. In the middle of an
import of compiled modules that may crash, and inside a callback of the garbage collector, of which
jax has one, it is dropped. So the process dies of a signal during such imports, before which
nothing is begun, and an interrupt that was dropped is repeated.
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
    """Ctrl-C is KeyboardInterrupt and SIGTERM is SystemExit; one that is ignored stays so."""
    hook = sys.unraisablehook
    sys.unraisablehook = repeat_dropped
    try:
        with _handled_by(signal.default_int_handler, terminate):
            yield
    finally:
        sys.unraisablehook = hook


@contextlib.contextmanager
def interrupts_kill() -> Iterator[None]:
    """For imports: Ctrl-C and SIGTERM end the process at once, without unwinding."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _handled_by(signal.SIG_DFL, signal.SIG_DFL):
        yield


@contextlib.contextmanager
def _handled_by(interrupt: Any, termination: Any) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in zip(before, (interrupt, termination), strict=True):
        if before[number] != signal.SIG_IGN:  # as for a job in the background
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    """SIGTERM unwinds like any exit, so that temporary files are removed."""
    sys.exit(TERMINATED)


def repeat_dropped(dropped: Any) -> None:
    """An exception could not be raised where it happened; one that ends us comes again."""
    numbers = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}
    number = numbers.get(dropped.exc_type)
    if number is None:
        sys.__unraisablehook__(dropped)
    else:
        threading.Timer(AGAIN, os.kill, (os.getpid(), number)).start()
