"""What the routes share: the model, the runner, the worker, and whether all of it is ready."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from planish.openai.served import Served
from planish.reference.text.requests import Request, Session
from planish.server.errors import Refused
from planish.server.metrics import Metrics
from planish.server.runner import Deliver, NotReadyError, QueueFullError, Runner, Ticket
from planish.server.settings import Settings

Result = TypeVar("Result")
Health = Literal["loading", "ok", "wedged", "stopping"]
Open = Callable[[], tuple[Session, Served]]  # load the model, and compile its programs

READING_SECONDS = 30.0  # the longest that rendering and tokenizing a request may take
RETRY_SECONDS = 1  # what a refused client is asked to wait


@dataclass(kw_only=True)
class Service:
    """A model that is served, and the threads beside the event loop's."""

    settings: Settings
    open: Open
    tell: Callable[[str], None]  # write a line of the log
    on_ready: Callable[[Session, Served], None] = lambda *_: None  # once requests are answered
    served: Served | None = None
    runner: Runner | None = None
    metrics: Metrics = field(default_factory=Metrics)
    is_stopping: bool = False
    worker: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="planish-reader")
    )
    converter: ThreadPoolExecutor = field(  # so that no request waits for a long /tokenize
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="planish-converter")
    )
    reading: set[Future[Any]] = field(default_factory=set)  # what both have to do
    exchanges: set[Ticket] = field(default_factory=set)  # that are being answered
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def start(self) -> None:
        """Begin to load; call it in the event loop."""
        loop = asyncio.get_running_loop()
        self.runner = Runner(self._open_session, self.settings.queue, loop.call_soon_threadsafe)
        self.runner.ready = self._announce
        self.runner.ended = self.ended.set
        self.metrics.watch(self.runner)
        self.runner.start()

    def _open_session(self) -> Session:
        session, served = self.open()
        self.served = served
        return session

    def _announce(self) -> None:
        assert self.runner is not None and self.runner.session is not None
        assert self.served is not None
        self.on_ready(self.runner.session, self.served)

    @property
    def health(self) -> Health:
        if self.is_stopping:
            return "stopping"
        if self.runner is None or self.runner.state == "loading":
            return "loading"
        stuck = self.runner.state != "ready" or self.runner.is_stalled()
        return "wedged" if stuck else "ok"

    def model(self) -> Served:
        """The model; Refused while it cannot answer."""
        health = self.health
        if health != "ok" or self.served is None:
            raise Refused(503, f"the server is {WORDS[health]}", headers=retry_after())
        return self.served

    async def read(self, work: Callable[..., Result], *given: Any) -> Result:
        """Run work on a request in the worker; Refused if it takes too long."""
        return await self._wait_for(self.worker.submit(work, *given))

    async def convert(self, work: Callable[[], Result]) -> Result:
        """The same beside the worker, for what no answer waits for."""
        return await self._wait_for(self.converter.submit(work))

    async def _wait_for(self, running: Future[Result]) -> Result:
        self.reading.add(running)
        running.add_done_callback(self.reading.discard)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(running), READING_SECONDS)
        except TimeoutError:
            problem = f"reading the request takes more than {READING_SECONDS:.0f} s"
            raise Refused(503, problem, headers=retry_after()) from None

    def submit(self, requests: tuple[Request, ...], salt: bytes, deliver: Deliver) -> Ticket:
        """Queue requests that share prefixes under a salt; Refused if they cannot be queued."""
        self.model()
        assert self.runner is not None
        salted = [replace(request, salt=salt) for request in requests]
        try:
            return self.runner.submit(salted, deliver)
        except QueueFullError:
            problem = f"{self.settings.queue} requests wait already: try again later"
            raise Refused(429, problem, code="queue_full", headers=retry_after()) from None
        except NotReadyError:
            raise Refused(503, "the server is stopping", headers=retry_after()) from None

    def close(self, seconds: float) -> bool:
        """End the threads; whether they have ended, the engine's within `seconds`."""
        for threads in (self.worker, self.converter):
            threads.shutdown(wait=False, cancel_futures=True)
        stopped = self.runner is None or self.runner.stop(seconds)
        return stopped and not self.reading


WORDS = {"loading": "loading the model", "wedged": "not making progress", "stopping": "stopping"}


def retry_after() -> dict[str, str]:
    return {"retry-after": str(RETRY_SECONDS)}


def salt_of(key: bytes, cache_salt: str) -> bytes:
    """What separates the cached prefixes of one API key, and of one of its salts, from others."""
    digest = hashlib.sha256(len(key).to_bytes(8, "big") + key)
    digest.update(cache_salt.encode("utf-8", "surrogatepass"))
    return digest.digest()
