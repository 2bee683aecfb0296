"""One streamed completion over HTTP, and when its pieces came.

A small client over asyncio's streams: with many clients at once, one of the usual ones would take
as much of the processors as the server that is measured.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from planish.reference.errors import PlanishError

PATH = "/v1/completions"
LONGEST = 2**24  # bytes of a line: of one event
DATA = b"data: "


class ServingError(PlanishError):
    """A server does not start, or answers with an error."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer. Times are seconds of one clock, the same in all replies.

    asked    when its request was sent
    pieces   when each piece of its text came
    tokens   in all of its pieces
    """

    asked: float
    pieces: tuple[float, ...]
    tokens: int

    @property
    def first(self) -> float:
        """Seconds from the request to its first piece."""
        return self.pieces[0] - self.asked

    @property
    def gaps(self) -> list[float]:
        """Seconds between pieces."""
        return [b - a for a, b in zip(self.pieces, self.pieces[1:], strict=False)]


async def complete(
    address: tuple[str, int], body: dict[str, Any], begin: Callable[[], object] = lambda: None
) -> Reply:
    """Ask for a streamed completion and read it to its end. begin: called at each piece.

    Raises ServingError for an answer that is an error or has no text."""
    reader, writer = await asyncio.open_connection(*address, limit=LONGEST)
    try:
        writer.write(request_of(address, {**body, "stream": True}))
        asked = time.perf_counter()
        await check_status(reader)
        pieces, tokens, finish = [], 0, None
        async for event in read_events(reader):
            now = time.perf_counter()
            for choice in event.get("choices", ()):
                finish = choice.get("finish_reason") or finish
                if choice["text"]:
                    pieces.append(now)
                    begin()
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    finally:
        writer.close()
    if not pieces:
        raise ServingError("answered without a text", name=PATH, found=f"finish {finish!r}")
    whole = body["max_tokens"] if finish == "length" else len(pieces)
    return Reply(asked=asked, pieces=tuple(pieces), tokens=tokens or whole)


def request_of(address: tuple[str, int], body: dict[str, Any]) -> bytes:
    """The bytes of a POST, after whose answer the connection ends."""
    content = json.dumps(body).encode()
    lines = [
        f"POST {PATH} HTTP/1.1",
        f"Host: {address[0]}:{address[1]}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        "Connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + content


async def check_status(reader: asyncio.StreamReader) -> None:
    """Read the status and the headers; ServingError unless it is 200 and chunked."""
    head = await reader.readuntil(b"\r\n\r\n")
    status, _, headers = head.decode("latin-1").partition("\r\n")
    if status.split()[1:2] != ["200"] or "chunked" not in headers.lower():
        rest = (await reader.read(2000)).decode(errors="replace")
        raise ServingError("is not answered", name=PATH, found=f"{status}: {rest[:300]}")


async def read_events(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The objects of a stream of events until [DONE]; ServingError for an error among them."""
    rest = b""
    async for chunk in read_chunks(reader):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if not line.startswith(DATA):
                continue
            data = line.removeprefix(DATA).strip()
            if data == b"[DONE]":
                return
            event: dict[str, Any] = json.loads(data)
            if event.get("error"):
                raise ServingError("failed", name=PATH, found=event["error"])
            yield event


async def read_chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The pieces of a chunked body (RFC 9112, 7.1)."""
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        yield (await reader.readexactly(size + 2))[:-2]
