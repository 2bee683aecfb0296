"""Requests that a session answers together, each as if it were alone.

A session takes requests at any time and is stepped by its owner: no threads, no clock. `OneByOne`
defines the answers: every request by itself, one after another. A session of fast/session/ computes
many in the same steps and must give the same tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from planish.reference.errors import PlanishError, SamplingError
from planish.reference.model.config import ModelConfig
from planish.reference.model.transformer import decode_step, prefill
from planish.reference.model.weights import Weights
from planish.reference.text.evaluate import log_softmax
from planish.reference.text.generate import Stop, check_fits
from planish.reference.text.sampling import Sampling, next_token

Finish = Literal["stop", "length", "cancelled", "error"]
MOST_LISTED = 20  # likeliest tokens beside each


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt to continue. Its answer depends on nothing but these fields and the model.

    prompt           token ids, at least one
    max_new_tokens   0 only scores the prompt
    sampling         with the request's seed
    choice           which continuation of the prompt it is, where several are asked for: the row of
                     its draws (SPEC 7)
    ends             ids that end it; they are counted, and reported in Event.end
    logprobs         how many of the likeliest tokens are listed beside each new one; None: nothing
    prompt_logprobs  the same for the prompt's tokens (echo)
    salt             requests share a cached prefix only if their salts are equal
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling = Sampling()  # noqa: RUF009 (frozen)
    choice: int = 0
    ends: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    salt: bytes = b""


@dataclass(frozen=True, kw_only=True)
class TokenScore:
    """log p of a token under the raw logits, in nats, and of the likeliest tokens, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a step found for one request.

    tokens    new ones, in order, without the one that ended it
    scores    of each of them, and of `end`, if the request asked
    prompt    of each token of the prompt, once; the first has none
    finish    set in the last event of a request; error: what failed, if it is "error"
    cached    tokens of the prompt that were not computed again
    """

    handle: int
    tokens: tuple[int, ...] = ()
    scores: tuple[TokenScore, ...] = ()
    prompt: tuple[TokenScore | None, ...] = ()
    end: int | None = None
    finish: Finish | None = None
    error: str = ""
    cached: int = 0


class Session(Protocol):
    """What answers requests. Not thread-safe: one thread calls all of it, but for `cancel`."""

    def submit(self, request: Request) -> int:
        """Queue a request, and return its handle. Raises PromptError or SamplingError for one that
        can never be answered."""

    def step(self) -> list[Event]:
        """Compute a little (tens of milliseconds) and say what was found; nothing if idle."""

    def cancel(self, handle: int) -> None:
        """End a request as soon as possible, from any thread; its last event says "cancelled"."""

    @property
    def is_idle(self) -> bool:
        """Whether no request is queued or running."""


@dataclass
class OneByOne:
    """The definition: requests in order of submission, one token of the first of them a step."""

    config: ModelConfig
    weights: Weights
    waiting: deque[tuple[int, Request]] = field(default_factory=deque)
    running: Iterator[Event] | None = None
    current: int = -1
    submitted: int = 0
    cancelled: set[int] = field(default_factory=set)

    def submit(self, request: Request) -> int:
        check_request(self.config, request)
        self.submitted += 1
        self.waiting.append((self.submitted, request))
        return self.submitted

    def cancel(self, handle: int) -> None:
        self.cancelled.add(handle)

    @property
    def is_idle(self) -> bool:
        return self.running is None and not self.waiting

    def step(self) -> list[Event]:
        if self.running is None:
            if not self.waiting:
                return []
            self.current, request = self.waiting.popleft()
            self.running = answer(self.config, self.weights, request, self.current)
        event = self._next(self.running)
        if event.finish is not None:
            self.running = None
            self.cancelled.discard(event.handle)
        return [event]

    def _next(self, running: Iterator[Event]) -> Event:
        if self.current in self.cancelled:
            return Event(handle=self.current, finish="cancelled")
        try:
            return next(running)
        except PlanishError as problem:
            return Event(handle=self.current, finish="error", error=str(problem))


def check_request(config: ModelConfig, request: Request) -> None:
    """Raise PromptError or SamplingError for a request that can never be answered."""
    request.sampling.check(config.vocab_size)
    check_fits(config, [request.prompt], Stop(request.max_new_tokens), config.max_positions)
    for name in ("logprobs", "prompt_logprobs"):
        count = getattr(request, name)
        if count is not None and not 0 <= count <= MOST_LISTED:
            raise SamplingError("bad value", name=name, expected=f"0..{MOST_LISTED}", found=count)


def answer(
    config: ModelConfig, weights: Weights, request: Request, handle: int = 0
) -> Iterator[Event]:
    """The events of one request, computed alone: one a token, the last with `finish`."""
    logits, cache = prefill(config, weights, request.prompt)
    if request.prompt_logprobs is not None:
        yield Event(handle=handle, prompt=score_prompt(logits, request))
    last, text = logits[-1], list[int]()
    for step in range(request.max_new_tokens):
        token = next_token(last, request.sampling, request.prompt, text, request.choice)
        scores = score_new(last, token, request.logprobs)
        if token in request.ends:
            yield Event(handle=handle, scores=scores, end=token, finish="stop")
            return
        if step + 1 == request.max_new_tokens:
            yield Event(handle=handle, tokens=(token,), scores=scores, finish="length")
            return
        text.append(token)
        yield Event(handle=handle, tokens=(token,), scores=scores)
        last, cache = decode_step(config, weights, token, cache)
    yield Event(handle=handle, finish="length")


def score_prompt(logits: np.ndarray, request: Request) -> tuple[TokenScore | None, ...]:
    """Each prompt token's score from logits [T, V] of the tokens before; None for the first."""
    count = request.prompt_logprobs or 0
    pairs = zip(logits[:-1], request.prompt[1:], strict=True)
    return (None, *(score_token(row, token, count) for row, token in pairs))


def score_new(logits: np.ndarray, token: int, count: int | None) -> tuple[TokenScore, ...]:
    """The score of a sampled token, if it is wanted."""
    return () if count is None else (score_token(logits, token, count),)


def score_token(logits: np.ndarray, token: int, count: int) -> TokenScore:
    """log p of a token and of the `count` likeliest, ties to the lowest id, from raw logits [V]."""
    log_p = log_softmax(logits)
    best: Sequence[int] = np.argsort(-logits, kind="stable")[:count].tolist()
    top = tuple((index, float(log_p[index])) for index in best)
    return TokenScore(token=token, logprob=float(log_p[token]), top=top)
