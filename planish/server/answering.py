"""A request from its body to its last byte, or until its client leaves.

    body -> Job (worker) -> Ticket (engine thread) -> events -> Answer -> chunks or one object

The engine never waits for a client: events pile up here, at most one request's tokens, and those of
one choice are merged before they are written. A client that reads nothing for `timeout` seconds is
cut off. When the client leaves, streamed or not, the ticket is cancelled before the next step.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.types import Receive, Scope, Send

from planish.openai.answer import Answer, Job
from planish.reference.text.requests import Event
from planish.server.errors import Refused, encode
from planish.server.guards import ClientLeftError
from planish.server.log import Record
from planish.server.runner import INTERNAL, Ticket
from planish.server.service import Service, retry_after, salt_of
from planish.server.stream import COMMENT, DONE, HEADERS, frame, frame_all

SILENCE = 5.0  # seconds until a stream without news gets a comment
MOST_EVENTS = 64  # that are turned into text before other requests have their turn


@dataclass
class Mailbox:
    """What was found for one ticket and not yet looked at; of the event loop's thread."""

    events: deque[tuple[int, Event]] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def deliver(self, index: int, event: Event) -> None:
        self.events.append((index, event))
        self.arrived.set()

    async def take(self, seconds: float) -> list[tuple[int, Event]]:
        """What is here, merged, the oldest first; nothing after so many seconds of silence.

        Not more than MOST_EVENTS: who has not read for long makes the loop wait no longer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.arrived.wait()
        found = [self.events.popleft() for _ in range(min(len(self.events), MOST_EVENTS))]
        if self.events:
            await asyncio.sleep(0)  # others come first
        else:
            self.arrived.clear()
        return list(merge(found))


def merge(events: Iterable[tuple[int, Event]]) -> Iterator[tuple[int, Event]]:
    """One event for each index that has any."""
    found: dict[int, list[Event]] = {}
    for index, event in events:
        found.setdefault(index, []).append(event)
    for index, some in found.items():
        yield index, some[0] if len(some) == 1 else join(some)


def join(events: Sequence[Event]) -> Event:
    """The events of one request as one."""
    return replace(
        events[-1],
        tokens=tuple(token for event in events for token in event.tokens),
        scores=tuple(score for event in events for score in event.scores),
        prompt=next((event.prompt for event in events if event.prompt), ()),
        cached=max(event.cached for event in events),
        accepted=sum(event.accepted for event in events),
        rejected=sum(event.rejected for event in events),
    )


@dataclass(kw_only=True)
class Exchange:
    """One job that is being answered."""

    service: Service
    job: Job
    answer: Answer
    ticket: Ticket
    mailbox: Mailbox
    record: Record
    done: set[int] = field(default_factory=set)

    async def chunks(self) -> AsyncIterator[list[dict[str, Any]]]:
        """What each delivery adds to the stream; an empty list after a silence."""
        while not self.answer.finished and self.answer.failure is None:
            found = await self.mailbox.take(SILENCE)
            yield [chunk for index, event in found for chunk in self.feed(index, event)]

    def feed(self, index: int, event: Event) -> list[dict[str, Any]]:
        """Chunks of an event; a choice whose text is complete is computed no further."""
        if index in self.done:
            return []
        chunks = self.answer.feed(index, event)
        self.record.note(event)
        if self.answer.is_done(index):
            self.done.add(index)
            if event.finish is None:
                self.ticket.cancel(index)
        return chunks

    def failure(self) -> Refused | None:
        """Why there is no answer, or not all of it."""
        if self.answer.failure is None:
            return None
        if self.ticket.refusal:
            return Refused(400, self.ticket.refusal)
        if self.service.is_stopping:
            return Refused(503, self.answer.failure, headers=retry_after())
        found = self.answer.failure
        words = INTERNAL if found.startswith(INTERNAL) else found  # the rest is for the log
        return Refused(500, words, headers={"x-should-retry": "false"})


async def answer(service: Service, job: Job, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a job, streamed or whole; Refused if it cannot be queued or fails before its end."""
    mailbox = Mailbox()
    salt = salt_of(scope["planish.key"], job.cache_salt)
    ticket = service.submit(job.requests, salt, mailbox.deliver)
    record: Record = scope["planish.record"]
    sampled = any(request.sampling.temperature for request in job.requests)
    record.begin(service.metrics, job.seed if sampled else None)
    exchange = Exchange(
        service=service,
        job=job,
        answer=job.open(),
        ticket=ticket,
        mailbox=mailbox,
        record=record,
    )
    service.exchanges.add(ticket)
    try:
        write = write_stream if job.stream else write_whole
        await unless_gone(write(exchange, send), receive)
    finally:
        service.exchanges.discard(ticket)
        ticket.cancel()
        record.end(exchange.answer.usage())


async def unless_gone(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Do the work until the client leaves; ClientLeftError if it does."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(until_gone(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeftError
        working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def write_whole(exchange: Exchange, send: Send) -> None:
    """One JSON object, once all is found."""
    async for _ in exchange.chunks():
        pass
    if (problem := exchange.failure()) is not None:
        raise problem
    body = await exchange.service.read(lambda: encode(exchange.answer.whole()))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def write_stream(exchange: Exchange, send: Send) -> None:
    """Events as they are found; the headers at once, and a comment in every silence."""
    out = Writer(send=send, seconds=exchange.service.settings.timeout)
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await out.write(COMMENT)
    async for chunks in exchange.chunks():
        if chunks or time.monotonic() - out.latest >= SILENCE:  # text may be held back
            await out.write(frame_all(chunks) or COMMENT)
    if (problem := exchange.failure()) is not None:
        await out.write(frame(problem.body()), last=True)
        return
    await out.write(frame_all(exchange.answer.closing()) + DONE, last=True)


@dataclass(kw_only=True)
class Writer:
    """Writes pieces of a body to a client that has to read each within `seconds`.

    latest: when the last one was written
    """

    send: Send
    seconds: float
    latest: float = 0.0

    async def write(self, piece: bytes, last: bool = False) -> None:
        message = {"type": "http.response.body", "body": piece, "more_body": not last}
        try:
            async with asyncio.timeout(self.seconds):
                await self.send(message)
                self.latest = time.monotonic()
        except TimeoutError:
            raise ClientLeftError from None
