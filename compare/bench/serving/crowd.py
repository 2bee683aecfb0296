"""Several clients at the same time: each sends its requests one after another.

No two prompts begin alike, so that no server can reuse what it computed for another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.compare.bench.serving.client import Reply, complete

BEGIN_SECONDS = 1.0  # after the first of several answers has begun, for the others to begin
SHORT = 8  # tokens of the prompts of those that are interrupted

Prompt = str | list[int]
Draw = Callable[[int], Prompt]  # a new prompt of so many tokens


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How a server is asked. draw: prompts that it counts as tokens; fields: of every request."""

    address: tuple[str, int]
    draw: Draw
    fields: dict[str, Any]

    def body(self, prompt: Prompt, new: int) -> dict[str, Any]:
        """A request for `new` tokens."""
        return {**self.fields, "prompt": prompt, "max_tokens": new, "temperature": 0}


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """What some clients saw. seconds: from the first request to the last token."""

    replies: Sequence[Reply]
    seconds: float

    @property
    def rate(self) -> float:
        """New tokens per second of all clients together."""
        return sum(reply.tokens for reply in self.replies) / self.seconds


def send_crowd(asked: Asked, clients: int, requests: int, sizes: tuple[int, int]) -> Crowd:
    """Every client sends `requests` requests. sizes: tokens of each prompt, and new ones."""
    prompt, new = sizes
    bodies = [
        [asked.body(asked.draw(prompt), new) for _ in range(requests)] for _ in range(clients)
    ]

    async def send_all(some: Sequence[dict[str, Any]]) -> list[Reply]:
        return [await complete(asked.address, body) for body in some]

    async def run() -> list[list[Reply]]:
        return await asyncio.gather(*map(send_all, bodies))

    start = time.perf_counter()
    replies = [reply for some in asyncio.run(run()) for reply in some]
    return Crowd(replies=replies, seconds=time.perf_counter() - start)


@dataclass(frozen=True, kw_only=True)
class Interruption:
    """A long prompt that came while others were being answered.

    gaps    of the others, between the long request and its first token; seconds
    first   seconds that it waited for its first token
    again   the same for the same prompt once more, which the server may know
    """

    gaps: Sequence[float]
    first: float
    again: float


def interrupt(asked: Asked, clients: int, prompt: int, new: int) -> Interruption:
    """Send a prompt of `prompt` tokens while `clients` clients get their `new` tokens each."""
    bodies = [asked.body(asked.draw(SHORT), new) for _ in range(clients)]
    long = asked.body(asked.draw(prompt), 2)

    async def run() -> tuple[list[Reply], Reply, Reply]:
        begun = [asyncio.Event() for _ in bodies]
        others = [
            asyncio.ensure_future(complete(asked.address, body, event.set))
            for body, event in zip(bodies, begun, strict=True)
        ]
        first = asyncio.ensure_future(begun[0].wait())
        await asyncio.wait([first, others[0]], return_when=asyncio.FIRST_COMPLETED)
        first.cancel()
        with suppress(TimeoutError):  # of a server that answers one after another
            async with asyncio.timeout(BEGIN_SECONDS):
                await asyncio.gather(*(event.wait() for event in begun))
        if others[0].done():
            others[0].result()  # raises what went wrong
        middle = await complete(asked.address, long)
        replies = await asyncio.gather(*others)
        return replies, middle, await complete(asked.address, long)

    others, middle, again = asyncio.run(run())
    end = middle.asked + middle.first
    gaps = [gap for reply in others for gap in gaps_between(reply, middle.asked, end)]
    return Interruption(gaps=gaps, first=middle.first, again=again.first)


def gaps_between(reply: Reply, start: float, end: float) -> list[float]:
    """The seconds between pieces of which the second came in start..end, or the next one after."""
    pairs = zip(reply.pieces, reply.pieces[1:], strict=False)
    return [b - a for a, b in pairs if b >= start and a <= end]


def draw_ids(rng: np.random.Generator, vocab: int) -> Draw:
    """Prompts of random ids."""

    def draw(tokens: int) -> Prompt:
        ids: list[int] = rng.integers(0, vocab, tokens).tolist()
        return ids

    return draw


def draw_letters(rng: np.random.Generator) -> Draw:
    """Prompts of random letters, for a server that takes texts only and whose tokens are bytes."""

    def draw(tokens: int) -> Prompt:
        return bytes(rng.integers(ord("a"), ord("z") + 1, tokens).astype(np.uint8)).decode()

    return draw
