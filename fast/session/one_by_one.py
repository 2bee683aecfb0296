"""A session over any fast engine that answers one request after another.

For engines whose numbers depend on the batch (XLA's form) and caches that the kernels do not hold.
The same request has the same answer every time, since its chunks depend on its prompt only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from planish.fast.model.cache import KVCache
from planish.fast.session.chunks import SMALLEST_CHUNK, chunk_size
from planish.fast.session.engine import Engine
from planish.reference.model.transformer import PREFILL_CHUNK
from planish.reference.text.requests import (
    Event,
    OneByOne,
    Request,
    Stats,
    TokenScore,
    continue_prompt,
    score_tokens,
)


class FastOneByOne(OneByOne):
    """Requests in order of submission; a step is a chunk of a prompt or one token."""

    def __init__(self, engine: Engine, context: int, why: str):
        super().__init__(
            engine.config, engine.weights, context, (f"one request at a time, since {why}",)
        )
        self.engine = engine

    def stats(self) -> Stats:
        return Stats(
            running=int(self.running is not None),
            waiting=len(self.waiting),
            programs=len(self.engine.programs.known()),
        )

    def warm(self, tell: Callable[[str], None] = lambda _: None) -> None:
        """Compile the programs of tokens at every length, and of chunks at the smallest."""
        sizes = sizes_up_to(self.context)
        for size in sizes:
            tell(f"tokens at up to {size} positions")
            self._try(min(SMALLEST_CHUNK, size - 1))
        for length in chunk_sizes():
            if length < sizes[0]:
                tell(f"a chunk of {length} tokens")
                self._try(length)

    def _try(self, length: int) -> None:
        """Answer a request of some length, for the programs that it compiles."""
        request = Request(prompt=(0,) * max(length, 1), max_new_tokens=min(2, self.context))
        for _ in self.respond(request, 0):
            pass

    def respond(self, request: Request, handle: int) -> Iterator[Event | None]:
        """Chunk by chunk, then token by token."""
        needed = len(request.prompt) + max(request.max_new_tokens - 1, 0)
        slots = next(size for size in sizes_up_to(self.context) if size >= needed)
        scores, wants = list[TokenScore | None]([None]), request.prompt_logprobs
        for logits, cache in self.engine.prefill(request.prompt, slots, wants is not None):
            if wants is not None:
                following = request.prompt[len(scores) : len(scores) + len(logits)]
                scores += score_tokens(logits[: len(following)], following, wants)
            sequence = Sequence(self.engine, cache, len(request.prompt))
            yield None
        try:
            if wants is not None:
                yield Event(handle=handle, prompt=tuple(scores))
            yield from continue_prompt(logits[-1], request, handle, sequence.advance)
        finally:
            self.engine.caches.give_back(sequence.cache)


class Sequence:
    """One sequence that grows."""

    def __init__(self, engine: Engine, cache: KVCache, length: int):
        self.engine, self.cache, self.length = engine, cache, length

    def advance(self, token: int) -> np.ndarray:
        """Logits [V] after one more token."""
        tokens, positions = np.array([token], np.int32), np.array([self.length], np.int32)
        logits, self.cache = self.engine.decode_step(tokens, positions, self.cache)
        self.length += 1
        return logits[0]


def sizes_up_to(context: int) -> list[int]:
    """The slots that caches may have: few, so that few programs are compiled."""
    sizes, size = [], PREFILL_CHUNK
    while size < context:
        sizes.append(size)
        size *= 2
    return [*sizes, context]


def chunk_sizes() -> list[int]:
    """The sizes to which chunks of a prompt are padded."""
    return sorted({chunk_size(count) for count in range(1, PREFILL_CHUNK + 1)})
