"""One line for each request, without a word of its prompt or key.

POST /v1/chat/completions 200; 12 prompt tokens (8 cached), 32 new, stop; first after 0.050 s;
0.310 s; req-6f1c0e3b5a7d9f20
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from planish.reference.errors import one_line
from planish.reference.text.requests import Event
from planish.server.metrics import Metrics

QUIET = frozenset({"/health", "/metrics"})  # paths that are asked every few seconds
LONGEST_PATH = 100


@dataclass(kw_only=True)
class Record:
    """What a request asked for and got, as it goes on."""

    name: str = field(default_factory=lambda: f"req-{secrets.token_hex(8)}")
    start: float = field(default_factory=time.perf_counter)
    metrics: Metrics | None = None
    seed: int | None = None  # if it is sampled
    usage: Mapping[str, Any] | None = None
    first: float | None = None  # seconds until the first token
    latest: float = 0.0  # of the last token
    finishes: Counter[str] = field(default_factory=Counter)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def begin(self, metrics: Metrics, seed: int | None) -> None:
        """The request is queued."""
        self.metrics, self.seed = metrics, seed

    def note(self, event: Event) -> None:
        """When tokens came, and how a choice ended."""
        assert self.metrics is not None
        count, now = len(event.tokens) + (event.end is not None), self.seconds
        if event.finish is not None:
            self.finishes[event.finish] += 1
            self.metrics.succeeded.labels(event.finish).inc()
        if not count:
            return
        if self.first is None:
            self.first = now
            self.metrics.first_token.observe(now)
        else:
            for _ in range(count):
                self.metrics.between_tokens.observe((now - self.latest) / count)
        self.latest = now

    def end(self, usage: Mapping[str, Any]) -> None:
        """The answer is complete, or nobody waits for it any more."""
        assert self.metrics is not None
        self.usage = usage
        self.metrics.whole.observe(self.seconds)
        self.metrics.prompt_tokens.inc(usage["prompt_tokens"])
        self.metrics.queries.inc(usage["prompt_tokens"])
        self.metrics.hits.inc(usage["prompt_tokens_details"]["cached_tokens"])
        self.metrics.new_tokens.inc(usage["completion_tokens"])
        guesses = usage.get("completion_tokens_details", {})
        self.metrics.guesses.inc(sum(guesses.values()))
        self.metrics.right.inc(guesses.get("accepted_prediction_tokens", 0))

    def line(self, method: str, path: str, status: int) -> str:
        """The line of the log."""
        parts = [f"{method} {path[:LONGEST_PATH]} {status}"]
        if self.usage is not None:
            found = self.usage["prompt_tokens_details"]["cached_tokens"]
            cached = f" ({found} cached)" if found else ""
            ends = ", ".join(sorted(self.finishes)) or "not finished"
            new = f"{self.usage['completion_tokens']} new, {ends}"
            parts.append(f"{self.usage['prompt_tokens']} prompt tokens{cached}, {new}")
        parts += [f"seed {self.seed}"] if self.seed is not None else []
        parts += [f"first after {self.first:.3f} s"] if self.first is not None else []
        return one_line(f"{'; '.join(parts)}; {self.seconds:.3f} s; {self.name}")


class Log:
    """Writes the lines, counts the answers, and gives each an x-request-id."""

    def __init__(self, app: ASGIApp, tell: Callable[[str], None], metrics: Metrics, bodies: bool):
        self.app, self.tell, self.metrics, self.bodies = app, tell, metrics, bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = scope["planish.record"] = Record()

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["planish.status"] = message["status"]
                named = (b"x-request-id", record.name.encode())
                message["headers"] = [*message.get("headers", ()), named]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            status = scope.get("planish.status", 500)
            self.metrics.responses.labels(str(status)).inc()
            if scope["path"] not in QUIET:
                self.tell(record.line(scope["method"], scope["path"], status))
            if self.bodies and "planish.body" in scope:
                self.tell(one_line(scope["planish.body"].decode(errors="replace")))
