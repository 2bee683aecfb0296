"""Blocks that need nothing of each other are quantized on threads, while the previous is written.

NumPy and the kernel release Python's lock in a loop over an array and in a call of the system. So
reading, rounding and writing overlap; what each block becomes does not depend on the number of
threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

AHEAD = 2  # blocks, for programs that have the memory of two float blocks
Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], count: int
) -> Iterator[Result]:
    """function(item) of each item, in order; `count` of the following ones are computed meanwhile.

    An error is raised where its result would have come; the items after it are not begun.
    """
    rest, waiting = iter(items), deque[Future[Result]]()
    with ThreadPoolExecutor(count) as pool:
        try:
            waiting.extend(pool.submit(function, item) for item in islice(rest, count))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(rest, 1))
                yield result
        finally:
            pool.shutdown(cancel_futures=True)
