"""Which rows of a batch are computed, and how many of their tokens at a time.

All rows of a batch take each step together. One that has ended is computed on until enough others
have ended too: then the rest moves into a smaller batch. No row's numbers depend on its batch, so
neither its tokens do.

Where the backend can sample, a dispatch computes as many tokens as come between two frames of a
screen; where it cannot, one, and the host samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from planish.fast.model.backend import Draw
from planish.fast.model.cache import KVCache
from planish.fast.session.sampling import MOST_TOKENS, draws, sample_rows
from planish.fast.session.slots import rows_to_keep
from planish.reference.errors import SamplingError
from planish.reference.text.generate import Stop
from planish.reference.text.sampling import Sampling

DISPATCH_SECONDS = 0.03  # text comes at least so often, where a token does not take longer

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows that are computed together, and where each of them is."""

    rows: tuple[int, ...]  # which prompt each of them is, ascending
    tokens: np.ndarray  # [B], the last one of each
    positions: np.ndarray  # [B], of that token
    cache: KVCache


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for. `eos`: ids that end a row."""

    stop: Stop
    sampling: Sampling
    eos: Sequence[int]
    on_device: bool  # whether the backend can sample this


class Steps(Protocol):
    """What a generation needs of an engine. Each consumes the cache and returns another."""

    def decode_step(
        self, tokens: np.ndarray, positions: np.ndarray, cache: KVCache, /
    ) -> tuple[np.ndarray, KVCache]:
        """Logits [B, V]."""

    def decode_tokens(
        self, tokens: np.ndarray, positions: np.ndarray, cache: KVCache, draw: Draw, /
    ) -> tuple[np.ndarray, KVCache]:
        """draw.count tokens of each row, [count, B]; -1 where there were no numbers to sample."""

    def take_rows(self, cache: KVCache, rows: Sequence[int], /) -> KVCache:
        """A smaller batch's."""


class Generation:
    """One batch on its way from its prompts' logits to its last tokens."""

    def __init__(
        self, steps: Steps, request: Request, batch: Batch, clock: Clock = time.perf_counter
    ):
        self.steps, self.request, self.batch, self.clock = steps, request, batch, clock
        self.active = set(batch.rows)

    def tokens(self, logits: np.ndarray) -> Iterator[tuple[int, int]]:
        """(row, token) as they come, from the logits [B, V] that the prompts left."""
        found, step, count = self._sampled(logits, 0), 0, 1
        self.batch = replace(self.batch, tokens=found[-1])
        while True:
            yield from self._live(found)
            step += len(found)
            remaining = self.request.stop.max_new_tokens - step
            if not self.active or remaining == 0:
                return
            self._thin_out(remaining)
            start = self.clock()
            found = self._next(step, min(count, remaining))
            count = next_count(len(found), self.clock() - start)

    def _live(self, found: np.ndarray) -> Iterator[tuple[int, int]]:
        """The tokens [count, B] of rows that go on; a token of `eos` ends its row."""
        for tokens in found.tolist():
            for row, token in zip(self.batch.rows, tokens, strict=True):
                if row not in self.active:
                    continue
                if token < 0:
                    raise SamplingError("cannot sample", name="logits", found="NaN or Inf")
                if token in self.request.eos:
                    self.active.remove(row)
                else:
                    yield row, token

    def _thin_out(self, remaining: int) -> None:
        """Move to a smaller batch if that pays."""
        batch = self.batch
        keep = rows_to_keep([row not in self.active for row in batch.rows], remaining)
        if keep is None:
            return
        self.batch = Batch(
            rows=tuple(batch.rows[place] for place in keep),
            tokens=batch.tokens[keep],
            positions=batch.positions[keep],
            cache=self.steps.take_rows(batch.cache, keep),
        )

    def _next(self, step: int, count: int) -> np.ndarray:
        """The next tokens of every row: [count, B], or [1, B] where the host samples."""
        batch, request = self.batch, self.request
        place = batch.tokens, batch.positions, batch.cache
        if request.on_device:
            draw = draws(request.sampling, batch.rows, step, count, request.eos)
            found, cache = self.steps.decode_tokens(*place, draw)
        else:
            logits, cache = self.steps.decode_step(*place)
            found = self._sampled(logits, step)
        last = cache.slots - 1  # a row that has ended must not leave its slots
        positions = np.minimum(batch.positions + len(found), last)
        self.batch = replace(batch, tokens=found[-1], positions=positions, cache=cache)
        return found

    def _sampled(self, logits: np.ndarray, step: int) -> np.ndarray:
        """One token of each row, [1, B], on the host."""
        request = self.request
        return sample_rows(logits, request.sampling, self.batch.rows, step, self.active)[None]


def next_count(count: int, seconds: float) -> int:
    """How many tokens the next dispatch computes, after one of `count` took some seconds."""
    return max(1, min(MOST_TOKENS, 2 * count, int(count * DISPATCH_SECONDS / seconds)))
