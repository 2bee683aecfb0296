"""A session without a model, and a runner whose deliveries a test waits for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from planish.reference.errors import PromptError
from planish.reference.text.requests import Event, Request, Stats


class Counting:
    """Answers each request with the bytes of a, b, ... z, a ...; `slots` requests at a time.

    A step takes a millisecond, as a fast one of a real model, and finds `burst` tokens of a row.
    entered: set once a step begins. go: cleared to hold a step. faults: what steps raise.
    """

    notes = ("counts",)

    def __init__(self, slots: int = 2, context: int = 64, burst: int = 1):
        self.context, self.burst = context, burst
        self.slots = slots
        self.waiting: list[tuple[int, Request]] = []
        self.rows: dict[int, list[int]] = {}
        self.most: dict[int, int] = {}
        self.cancelled: set[int] = set()
        self.submitted, self.steps = 0, 0
        self.salts: list[bytes] = []
        self.faults: list[Exception] = []
        self.entered, self.go = threading.Event(), threading.Event()
        self.go.set()

    def submit(self, request: Request) -> int:
        if not request.prompt:
            raise PromptError("is empty", name="prompt")
        self.submitted += 1
        self.salts.append(request.salt)
        self.waiting.append((self.submitted, request))
        return self.submitted

    def cancel(self, handle: int) -> None:
        self.cancelled.add(handle)

    def warm(self, tell: Callable[[str], None] = lambda _: None) -> None:
        pass

    def stats(self) -> Stats:
        return Stats(running=len(self.rows), waiting=len(self.waiting))

    @property
    def is_idle(self) -> bool:
        return not (self.rows or self.waiting)

    def step(self) -> list[Event]:
        self.entered.set()
        self.go.wait(60)
        threading.Event().wait(0.001)
        self.steps += 1
        if self.faults:
            raise self.faults.pop()
        gone, self.cancelled = self.cancelled, set()
        events = [Event(handle=one, finish="cancelled") for one in gone if self._drop(one)]
        while self.waiting and len(self.rows) < self.slots:
            handle, request = self.waiting.pop(0)
            self.rows[handle], self.most[handle] = [], request.max_new_tokens
        return events + [self._count(handle) for handle in list(self.rows)]

    def _count(self, handle: int) -> Event:
        row, most = self.rows[handle], self.most[handle]
        found = [64 + i % 26 for i in range(len(row), min(len(row) + self.burst, most))]
        row += found
        done = len(row) == most
        if done:
            del self.rows[handle]
        return Event(handle=handle, tokens=tuple(found), finish="length" if done else None)

    def _drop(self, handle: int) -> bool:
        before = len(self.waiting) + len(self.rows)
        self.waiting = [item for item in self.waiting if item[0] != handle]
        self.rows.pop(handle, None)
        return len(self.waiting) + len(self.rows) < before


class Posted:
    """Stands for an event loop: what is posted waits until the test runs it."""

    def __init__(self) -> None:
        self.calls: queue.Queue[Callable[[], None]] = queue.Queue()

    def __call__(self, call: Callable[[], None]) -> None:
        self.calls.put(call)

    def run_until(self, happened: Callable[[], object]) -> int:
        """Run what is posted until something holds; returns how many calls that took."""
        count = 0
        while not happened():
            self.calls.get(timeout=10)()
            count += 1
        return count
