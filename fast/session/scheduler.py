"""Which rows of a batch are computed, and how many of their tokens at a time.

Every step computes all rows of a batch, also those that have ended, until enough rows have ended
that the others move to a smaller batch. A row's numbers do not depend on its batch, so neither do
its tokens.

If the backend can sample, a dispatch computes as many tokens as fit in a twentieth of a second;
otherwise it computes one, and the host samples. A dispatch costs the host 1 to 2 ms, in which the
processor's other cores wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np

from planish.fast.model.backend import Draw
from planish.fast.model.cache import KVCache
from planish.fast.session.sampling import MOST_TOKENS, RowDraw, prepare_draw
from planish.fast.session.slots import rows_to_keep
from planish.reference.errors import SamplingError
from planish.reference.text.generate import Stop
from planish.reference.text.sampling import Sampling, next_token

DISPATCH_SECONDS = 0.05  # text appears at least this often, unless one token takes longer

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows that are computed in the same steps, and the state of each."""

    rows: tuple[int, ...]  # the index of each row's prompt, ascending
    tokens: np.ndarray  # [B], the last token of each row
    positions: np.ndarray  # [B], of that token
    cache: KVCache


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of a generation. prompts: of each row, for penalties. eos: ids that end a row."""

    prompts: Sequence[Sequence[int]]
    stop: Stop
    sampling: Sampling
    eos: Sequence[int]
    on_device: bool  # whether the backend can sample this


class Steps(Protocol):
    """What a generation needs of an engine. Each method consumes the cache and returns another."""

    def decode_step(
        self, tokens: np.ndarray, positions: np.ndarray, cache: KVCache, /
    ) -> tuple[np.ndarray, KVCache]:
        """Logits [B, V]."""

    def decode_tokens(
        self, tokens: np.ndarray, positions: np.ndarray, cache: KVCache, draw: Draw, /
    ) -> tuple[np.ndarray, KVCache]:
        """draw.count tokens of each row, [count, B]; -1 if the logits were not numbers."""

    def take_rows(self, cache: KVCache, rows: Sequence[int], /) -> KVCache:
        """The cache of some rows."""


class Generation:
    """The state of one batch, from its prompts' logits to its last tokens."""

    def __init__(
        self, steps: Steps, request: Request, batch: Batch, clock: Clock = time.perf_counter
    ):
        self.steps, self.request, self.batch, self.clock = steps, request, batch, clock
        self.active = set(batch.rows)
        self.texts: dict[int, list[int]] = {row: [] for row in batch.rows}  # the new tokens

    def tokens(self, logits: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield (row, token), beginning with the logits [B, V] of the prompts' last tokens."""
        found, step, count = self._sample(logits), 0, 1
        self.batch = replace(self.batch, tokens=found[-1])
        while True:
            yield from self._running(found)
            step += len(found)
            remaining = self.request.stop.max_new_tokens - step
            if not self.active or remaining == 0:
                return
            self._shrink(remaining)
            start = self.clock()
            found = self._next(step, min(count, remaining))
            count = next_count(len(found), self.clock() - start)

    def _running(self, found: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield the tokens [count, B] of rows that have not ended; `eos` ids end a row."""
        for tokens in found.tolist():
            for row, token in zip(self.batch.rows, tokens, strict=True):
                if row not in self.active:
                    continue
                if token < 0:
                    raise SamplingError("cannot sample", name="logits", found="NaN or Inf")
                if token in self.request.eos:
                    self.active.remove(row)
                else:
                    self.texts[row].append(token)
                    yield row, token

    def _shrink(self, remaining: int) -> None:
        """Move to a smaller batch if it pays."""
        batch = self.batch
        keep = rows_to_keep([row not in self.active for row in batch.rows], remaining)
        if keep is None:
            return
        self.batch = Batch(
            rows=tuple(batch.rows[index] for index in keep),
            tokens=batch.tokens[keep],
            positions=batch.positions[keep],
            cache=self.steps.take_rows(batch.cache, keep),
        )

    def _next(self, step: int, count: int) -> np.ndarray:
        """The next tokens of every row: [count, B], or [1, B] if the host samples."""
        batch, request = self.batch, self.request
        state = batch.tokens, batch.positions, batch.cache
        if request.on_device:
            own = partial(RowDraw, sampling=request.sampling, step=step, ends=request.eos)
            draw = prepare_draw([own(row=row) for row in batch.rows], count)
            found, cache = self.steps.decode_tokens(*state, draw)
        else:
            logits, cache = self.steps.decode_step(*state)
            found = self._sample(logits)
        last = cache.slots - 1  # a row that has ended stays within its slots
        positions = np.minimum(batch.positions + len(found), last)
        self.batch = replace(batch, tokens=found[-1], positions=positions, cache=cache)
        return found

    def _sample(self, logits: np.ndarray) -> np.ndarray:
        """Sample one token of each row on the host, 0 for rows that have ended: [1, B]."""
        sampling, prompts = self.request.sampling, self.request.prompts
        found = [
            next_token(x, sampling, prompts[row], self.texts[row], row) if row in self.active else 0
            for row, x in zip(self.batch.rows, logits, strict=True)
        ]
        return np.array([found])


def next_count(count: int, seconds: float) -> int:
    """How many tokens the next dispatch computes, if one of `count` tokens took `seconds`."""
    return max(1, min(MOST_TOKENS, 2 * count, int(count * DISPATCH_SECONDS / seconds)))
