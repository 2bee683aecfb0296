"""The socket, uvicorn, signals and the end.

The first SIGTERM or SIGINT ends open streams with an error event, then the server, within three
seconds; the second ends the process at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from planish.reference.errors import PlanishError
from planish.server.app import make_app
from planish.server.service import Service

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
FAILED = 1
CLOSING_SECONDS = 1.0  # for streams to take their last event; then for connections; for the engine
IDLE_SECONDS = 30  # of a connection between two requests
STUCK_SECONDS = 60  # until what a closed connection still holds is dropped
MOST_CONNECTIONS = 1000
BACKLOG = 128


class Connection(H11Protocol):
    """A connection that can be cut off, and that has to send a request in time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self.app_state = {**self.app_state, "abort": self.transport.abort}
        self._wait_for_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None and self.timeout_keep_alive_task is None:
            self._wait_for_request()

    def timeout_keep_alive_handler(self) -> None:
        """Close, also if the client never reads the rest of its answer."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(STUCK_SECONDS, self.transport.abort)

    def _wait_for_request(self) -> None:
        handler = self.timeout_keep_alive_handler
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, handler)


class Server(uvicorn.Server):
    """uvicorn, which leaves signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; PlanishError if the address is in use or is none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as problem:
        raise PlanishError(f"is no address: {problem.strerror}", name=f"host {host}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as problem:
        listener.close()
        where = f"{host}:{port}"
        expected = "another --port, or 0 for one that is free"
        raise PlanishError(str(problem.strerror), name=where, expected=expected) from None
    return listener


def url_of(listener: socket.socket) -> str:
    """http://127.0.0.1:8080, with the real port."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@dataclass(kw_only=True)
class Process:
    """A service at a socket, from start to end."""

    service: Service
    listener: socket.socket
    signalled: asyncio.Event = field(default_factory=asyncio.Event)
    code: int = 0

    async def run(self) -> int:
        """Serve until a signal, `stop`, or the end of the engine; returns the exit code."""
        server = Server(configure(self.service))
        self.service.start()
        with self._handling_signals():
            serving = asyncio.create_task(server.serve(sockets=[self.listener]))
            await self._until_end()
            await self._say_goodbye()
            server.should_exit = True
            await serving
        return self.code

    def stop(self, code: int = 0) -> None:
        """End the service; in the event loop's thread."""
        self.code = code
        self.signalled.set()

    async def _until_end(self) -> None:
        waiting = [asyncio.create_task(x.wait()) for x in (self.signalled, self.service.ended)]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        if not self.signalled.is_set():
            self.code = FAILED

    async def _say_goodbye(self) -> None:
        """Refuse what comes, and end what runs with an error that says why."""
        self.service.is_stopping = True
        runner = self.service.runner
        assert runner is not None
        runner.abandon("the server is stopping")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSING_SECONDS):
                while self.service.exchanges:
                    await asyncio.sleep(0.01)

    @contextlib.contextmanager
    def _handling_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end the service, unless they are ignored or this is not the process's
        main thread."""
        loop, numbers = asyncio.get_running_loop(), list[signal.Signals]()
        if threading.current_thread() is threading.main_thread():
            numbers = [each for each in CODES if signal.getsignal(each) != signal.SIG_IGN]
        for number in numbers:
            loop.add_signal_handler(number, self._receive, number)
        yield

    def _receive(self, number: signal.Signals) -> None:
        if self.signalled.is_set():
            exit_now(CODES[number])
        self.service.tell(f"{number.name}: ending")
        self.stop(CODES[number])


def configure(service: Service) -> uvicorn.Config:
    """uvicorn with h11, without logs: what is worth a line, log.py and guards.py write."""
    return uvicorn.Config(
        make_app(service),
        http=Connection,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=int(CLOSING_SECONDS),
    )


def serve(service: Service, listener: socket.socket, code_of: Callable[[int], int] = int) -> int:
    """Serve in this thread until the end; returns the exit code, which code_of may change.

    Raises the error for which the model cannot be loaded.
    """

    async def run() -> int:
        return await Process(service=service, listener=listener).run()

    code = code_of(asyncio.run(run()))
    problem = service.runner.problem if service.runner is not None else None
    if not service.close(CLOSING_SECONDS):  # in the middle of compiling, say
        exit_now(code)
    if problem is not None and service.served is None:
        raise problem
    if problem is not None:
        service.tell(f"error: {problem}")
    return code


def exit_now(code: int) -> None:
    """End the process without waiting for any thread."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
