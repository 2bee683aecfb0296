"""A thread that owns a session: it takes requests, steps, and delivers what was found.

Other threads call `submit`, `Ticket.cancel`, `abandon` and `stop`; only the thread itself touches
the session. What one step found is delivered in one call, so that the event loop wakes up once.

A step that fails ends the requests that run; three in a row end the thread, and the server.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from planish.reference.errors import LOGGER, PlanishError, one_line
from planish.reference.text.requests import Event, Request, Session, Stats

Deliver = Callable[[int, Event], None]  # the index of a ticket's request; what was found
Post = Callable[[Callable[[], None]], object]  # run something in the receivers' thread
State = Literal["loading", "ready", "stopped"]

MOST_FAILURES = 3  # in a row
STALLED = 30.0  # seconds beyond the longest step
INTERNAL = "internal error"  # how the error of an unforeseen failure begins


class QueueFullError(Exception):
    """As many requests wait as may."""


class NotReadyError(Exception):
    """The model is still being loaded, or the thread has ended."""


@dataclass(eq=False, kw_only=True)
class Ticket:
    """Requests that were submitted together."""

    runner: Runner
    requests: Sequence[Request]
    deliver: Deliver
    open: set[int] = field(default_factory=set)  # indices that are not finished
    refusal: str = ""  # why the session did not take one

    def cancel(self, index: int | None = None) -> None:
        """End one of the requests, or all, before the next step; from any thread, at any time."""
        self.runner.cancel(self, index)


class Runner:
    """The thread. `open_session` runs in it, then `session.warm` and all steps.

    queue   tickets that may wait while as many as the session has slots are answered
    post    as loop.call_soon_threadsafe; deliveries, `ready` and `ended` are called through it
    """

    def __init__(self, open_session: Callable[[], Session], queue: int, post: Post):
        self.open_session, self.queue, self.post = open_session, queue, post
        self.state: State = "loading"
        self.session: Session | None = None
        self.problem: BaseException | None = None  # why the thread ended
        self.ready: Callable[[], None] = lambda: None
        self.ended: Callable[[], None] = lambda: None
        self._changed = threading.Condition()
        self._submitted: deque[Ticket] = deque()
        self._cancelled: deque[tuple[Ticket, int]] = deque()
        self._abandoned = ""
        self._tickets: dict[Ticket, None] = {}  # unfinished, in order of arrival
        self._known: dict[int, tuple[Ticket, int]] = {}  # by the session's handle
        self._handles: dict[tuple[Ticket, int], int] = {}
        self._failures = 0
        self.stats = Stats(running=0, waiting=0)
        self.warm_programs = 0
        self._began: float | None = None  # of the step that is being computed
        self._longest = 0.0
        self._thread = threading.Thread(target=self._run, name="planish-engine", daemon=True)

    # from other threads

    def start(self) -> None:
        self._thread.start()

    def submit(self, requests: Sequence[Request], deliver: Deliver) -> Ticket:
        """Queue requests, all or none; QueueFullError or NotReadyError."""
        ticket = Ticket(runner=self, requests=requests, deliver=deliver)
        ticket.open.update(range(len(requests)))
        with self._changed:
            if self.state != "ready" or self._abandoned:
                raise NotReadyError
            if len(self._tickets) >= self.slots + self.queue:
                raise QueueFullError
            self._tickets[ticket] = None
            self._submitted.append(ticket)
            self._changed.notify()
        return ticket

    def cancel(self, ticket: Ticket, index: int | None) -> None:
        with self._changed:
            indices = sorted(ticket.open) if index is None else [index]
            self._cancelled += [(ticket, one) for one in indices]
            self._changed.notify()

    def abandon(self, why: str) -> None:
        """End every request with an error that says why, and take no more."""
        with self._changed:
            self._abandoned = why
            self._changed.notify()

    def stop(self, seconds: float) -> bool:
        """End the thread, after its step; whether it has ended within `seconds`."""
        with self._changed:
            self.state = "stopped"
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def slots(self) -> int:
        """Requests that are answered at the same time."""
        return getattr(self.session, "slots", 1)

    @property
    def unfinished(self) -> int:
        """Tickets that run or wait."""
        return len(self._tickets)

    def is_stalled(self) -> bool:
        """Whether a step takes far longer than any before it."""
        began = self._began
        return began is not None and time.monotonic() - began > STALLED + self._longest

    # in the thread

    def _run(self) -> None:
        try:
            self.session = self.open_session()
            self.stats = self.session.stats()
            self.warm_programs = self.stats.programs
            with self._changed:
                if self.state == "loading":
                    self.state = "ready"
            self._post(self.ready)
            while self._wait():
                self._turn(self.session)
        except BaseException as problem:
            self.problem = problem
            with self._changed:
                self.state = "stopped"
            self._deliver(self._fail_all("the engine has failed"))
        finally:
            self.state = "stopped"
            self._post(self.ended)

    def _wait(self) -> bool:
        """Sleep while there is nothing to do; False once the thread is to end."""
        with self._changed:
            self._changed.wait_for(self._has_work)
            return self.state != "stopped"

    def _has_work(self) -> bool:
        news = self._submitted or self._cancelled or (self._abandoned and self._tickets)
        return bool(news or self._known) or self.state == "stopped"

    def _turn(self, session: Session) -> None:
        """What came in, one step, one delivery."""
        with self._changed:
            submitted, cancelled = list(self._submitted), list(self._cancelled)
            abandoned = self._abandoned
            self._submitted.clear()
            self._cancelled.clear()
        if abandoned:
            self._deliver(self._fail_all(abandoned))
            return
        found = [event for ticket in submitted for event in self._submit_to(session, ticket)]
        for one in cancelled:
            if one in self._handles:
                session.cancel(self._handles[one])
        found += self._place(self._step(session))
        self.stats = session.stats()
        self._deliver(found)

    def _submit_to(self, session: Session, ticket: Ticket) -> Iterable[tuple[Ticket, int, Event]]:
        """Hand over the requests; the events of those that the session refuses."""
        for index, request in enumerate(ticket.requests):
            try:
                handle = session.submit(request)
            except PlanishError as problem:
                ticket.refusal = str(problem)
                yield ticket, index, Event(handle=-1, finish="error", error=str(problem))
            else:
                self._known[handle] = ticket, index
                self._handles[ticket, index] = handle

    def _step(self, session: Session) -> list[Event]:
        """What a step found; if it fails, the end of all that run."""
        self._began = time.monotonic()
        try:
            events = session.step()
        except Exception as problem:
            events = self._give_up(session, locate(problem))
        finally:
            self._longest = max(self._longest, time.monotonic() - self._began)
            self._began = None
        self._count_failures(events)
        return events

    def _give_up(self, session: Session, text: str) -> list[Event]:
        """The end of all requests in a session that failed."""
        for handle in self._known:
            session.cancel(handle)
        return [Event(handle=handle, finish="error", error=text) for handle in self._known]

    def _count_failures(self, events: Sequence[Event]) -> None:
        failed = [event.error for event in events if event.error.startswith(INTERNAL)]
        if failed:
            LOGGER.error("%s", one_line(failed[0]))
        self._failures = self._failures + 1 if failed else 0
        if self._failures >= MOST_FAILURES:
            raise PlanishError(f"{MOST_FAILURES} steps failed in a row", name="engine")

    def _place(self, events: Iterable[Event]) -> list[tuple[Ticket, int, Event]]:
        """The events with the requests that they are of."""
        placed = []
        for event in events:
            if event.handle not in self._known:
                continue
            ticket, index = self._known[event.handle]
            placed.append((ticket, index, event))
            if event.finish is not None:
                del self._known[event.handle], self._handles[ticket, index]
        return placed

    def _fail_all(self, why: str) -> list[tuple[Ticket, int, Event]]:
        """An error for every request that is not finished."""
        failed = Event(handle=-1, finish="error", error=why)
        self._known.clear()
        self._handles.clear()
        return [(ticket, i, failed) for ticket in self._tickets for i in sorted(ticket.open)]

    def _deliver(self, found: Sequence[tuple[Ticket, int, Event]]) -> None:
        if not found:
            return
        with self._changed:
            for ticket, index, event in found:
                if event.finish is not None:
                    ticket.open.discard(index)
                    if not ticket.open:
                        self._tickets.pop(ticket, None)
        self._post(partial(hand_out, found))

    def _post(self, call: Callable[[], None]) -> None:
        """Run something in the receivers' thread, unless their loop has ended."""
        try:
            self.post(call)
        except RuntimeError:
            return


def hand_out(found: Iterable[tuple[Ticket, int, Event]]) -> None:
    """Give each ticket its events."""
    for ticket, index, event in found:
        ticket.deliver(index, event)


def locate(problem: BaseException) -> str:
    """The type of an unforeseen error and where it was raised; its words may quote a prompt."""
    frames = traceback.extract_tb(problem.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{INTERNAL}: {type(problem).__name__}{where}"
