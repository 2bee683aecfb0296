"""Server-sent events: the bytes of a stream.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from planish.server.errors import encode

COMMENT = b": waiting\n\n"  # clients ignore it, and know that the connection lives
DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx passes every piece on at once
]


def frame(value: Any) -> bytes:
    """One event: an object, or its bytes."""
    return b"data: " + (value if isinstance(value, bytes) else encode(value)) + b"\n\n"


def frame_all(values: Iterable[Any]) -> bytes:
    """Several events, for one write."""
    return b"".join(map(frame, values))
