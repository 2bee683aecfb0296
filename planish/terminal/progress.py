"""Progress of long stages on stderr: a bar on a terminal, a few lines in a log.

A log gets a line when a stage has taken half a minute, then every two minutes, and one at the end
of a stage that took ten seconds or more; shorter stages print nothing.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from tqdm import tqdm

from planish.reference.errors import notice

WORTH_A_LINE, FIRST, AGAIN = 10.0, 30.0, 120.0  # seconds


def progress(items: Iterable[Any], description: str = "") -> Iterable[Any]:
    """Iterate, and show the description, how many items are done, and the time."""
    if sys.stderr.isatty():
        bar: Iterable[Any] = open_bar(items, description)
        return bar
    return log_progress(items, description)


def open_bar(items: Iterable[Any], description: str) -> tqdm[Any]:
    """A bar that appears after two seconds and goes when it is full."""
    return tqdm(items, desc=description, delay=2, leave=False)


def log_progress(
    items: Iterable[Any],
    description: str,
    clock: Callable[[], float] = time.monotonic,
    detail: Callable[[], str] = str,
) -> Iterator[Any]:
    """Iterate, with a notice now and then; `detail` ends its line."""
    of = f" of {len(items)}" if isinstance(items, Collection) else ""
    start, due, done = clock(), FIRST, 0
    for done, item in enumerate(items):
        if (seconds := clock() - start) >= due:
            notice(f"{description}: {done}{of} after {duration(seconds)}{detail()}")
            due = seconds + AGAIN
        yield item
    if (seconds := clock() - start) >= WORTH_A_LINE:
        notice(f"{description}: done in {duration(seconds)}")


def duration(seconds: float) -> str:
    """41 s, 3 min 5 s, 2 h 10 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@contextlib.contextmanager
def notice_when_slow(line: str, delay: float = 2.0) -> Iterator[None]:
    """Give a notice if the block takes longer than `delay` seconds."""
    timer = threading.Timer(delay, notice, (line,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
