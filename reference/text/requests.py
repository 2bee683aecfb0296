"""Requests that a session answers together, each as if it were alone.

A session takes requests at any time and is stepped by its owner: no threads, no clock. `OneByOne`
defines the answers: every request by itself, one after another. A session of fast/session/ computes
many in the same steps and must give the same tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from planish.reference.errors import PlanishError, SamplingError
from planish.reference.model.config import ModelConfig
from planish.reference.model.transformer import decode_step, prefill
from planish.reference.model.weights import Weights
from planish.reference.overflow import silence_overflow
from planish.reference.text.constraint import Constraint, accept_token, mask_logits
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
    constraint       what the answer must be; None: anything
    min_new_tokens   no id of `ends` comes before so many tokens
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling = Sampling()  # noqa: RUF009 (frozen)
    choice: int = 0
    ends: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    salt: bytes = b""
    constraint: Constraint | None = None
    min_new_tokens: int = 0

    def excluded(self, new: int) -> tuple[int, ...]:
        """The ids that may not follow `new` tokens."""
        return self.ends if new < self.min_new_tokens else ()


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
    accepted  guesses of tokens that were right, and rejected: that were not
    """

    handle: int
    tokens: tuple[int, ...] = ()
    scores: tuple[TokenScore, ...] = ()
    prompt: tuple[TokenScore | None, ...] = ()
    end: int | None = None
    finish: Finish | None = None
    error: str = ""
    cached: int = 0
    accepted: int = 0
    rejected: int = 0


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What a session is doing.

    running, waiting   requests
    pages, pages_used  of the cache, and those that running requests hold; 0 without pages
    programs           compiled so far
    """

    running: int
    waiting: int
    pages: int = 0
    pages_used: int = 0
    programs: int = 0


class Session(Protocol):
    """What answers requests. Not thread-safe: one thread calls all of it, but for `cancel`.

    slots     requests that are answered at the same time
    context   tokens of a request, prompt and answer, at most
    notes     what was chosen when it was opened, and why
    """

    slots: int
    context: int
    notes: tuple[str, ...]

    def submit(self, request: Request) -> int:
        """Queue a request, and return its handle. Raises PromptError or SamplingError for one that
        can never be answered."""

    def step(self) -> list[Event]:
        """Compute a little (tens of milliseconds) and say what was found; nothing if idle."""

    def cancel(self, handle: int) -> None:
        """End a request as soon as possible, from any thread; its last event says "cancelled"."""

    def warm(self, tell: Callable[[str], None] = ...) -> None:
        """Compile what requests will need; `tell` hears what, before each program."""

    def stats(self) -> Stats:
        """What it is doing."""

    @property
    def is_idle(self) -> bool:
        """Whether no request is queued or running."""


@dataclass
class OneByOne:
    """The definition: requests in order of submission, one token of the first of them a step.

    context: 0 for all of the model's positions."""

    config: ModelConfig
    weights: Weights
    context: int = 0
    notes: tuple[str, ...] = ("one request at a time, by the reference",)
    waiting: deque[tuple[int, Request]] = field(default_factory=deque)
    running: Iterator[Event | None] | None = None
    current: int = -1
    submitted: int = 0
    cancelled: set[int] = field(default_factory=set)
    slots: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        self.context = min(self.context or self.config.max_positions, self.config.max_positions)

    def submit(self, request: Request) -> int:
        check_request(self.config, request)
        check_fits(self.config, [request.prompt], Stop(request.max_new_tokens), self.context)
        self.submitted += 1
        self.waiting.append((self.submitted, request))
        return self.submitted

    def cancel(self, handle: int) -> None:
        self.cancelled.add(handle)

    @property
    def is_idle(self) -> bool:
        return self.running is None and not self.waiting

    def stats(self) -> Stats:
        return Stats(running=int(self.running is not None), waiting=len(self.waiting))

    def warm(self, tell: Callable[[str], None] = lambda _: None) -> None:
        """There is nothing to compile."""

    def respond(self, request: Request, handle: int) -> Iterator[Event | None]:
        """The events of one request; None where a step found nothing yet."""
        return answer(self.config, self.weights, request, handle)

    @silence_overflow()
    def step(self) -> list[Event]:
        events = self._drop_cancelled()
        if self.running is None and self.waiting:
            self.current, request = self.waiting.popleft()
            self.running = self.respond(request, self.current)
        event = None if self.running is None else self._next(self.running)
        return events if event is None else [*events, event]

    def _drop_cancelled(self) -> list[Event]:
        """End what was cancelled, also what still waits."""
        gone = set(self.cancelled)
        self.cancelled -= gone
        known = {handle for handle, _ in self.waiting}
        self.waiting = deque(item for item in self.waiting if item[0] not in gone)
        if self.running is not None and self.current in gone:
            known.add(self.current)
            self._end()
        return [Event(handle=one, finish="cancelled") for one in sorted(gone & known)]

    def _next(self, running: Iterator[Event | None]) -> Event | None:
        try:
            event = next(running)
        except Exception as problem:
            event = Event(handle=self.current, finish="error", error=describe_failure(problem))
        if event is not None and event.finish is not None:
            self._end()
        return event

    def _end(self) -> None:
        """Let go of the running request, and of what it holds."""
        running, self.running = self.running, None
        if isinstance(running, Generator):
            running.close()


def describe_failure(problem: Exception) -> str:
    """The line of an event for a request that failed."""
    return str(problem) if isinstance(problem, PlanishError) else f"internal error: {problem}"


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

    def advance(token: int) -> np.ndarray:
        nonlocal cache
        last, cache = decode_step(config, weights, token, cache)
        return last

    if request.prompt_logprobs is not None:
        yield Event(handle=handle, prompt=score_prompt(logits, request))
    yield from continue_prompt(logits[-1], request, handle, advance)


def continue_prompt(
    last: np.ndarray, request: Request, handle: int, advance: Callable[[int], np.ndarray]
) -> Iterator[Event]:
    """The events after a prompt, from the logits [V] of its last token.

    advance: the logits [V] after one more token."""
    text = list[int]()
    matcher = None if request.constraint is None else request.constraint()
    for step in range(request.max_new_tokens):
        masked = mask_logits(last, matcher, request.excluded(step))
        token = next_token(masked, request.sampling, request.prompt, text, request.choice)
        scores = score_new(last, token, request.logprobs)
        if token in request.ends:
            yield Event(handle=handle, scores=scores, end=token, finish="stop")
            return
        complete = accept_token(matcher, token)
        if complete or step + 1 == request.max_new_tokens:
            finish: Finish = "stop" if complete else "length"
            yield Event(handle=handle, tokens=(token,), scores=scores, finish=finish)
            return
        text.append(token)
        yield Event(handle=handle, tokens=(token,), scores=scores)
        last = advance(token)
    yield Event(handle=handle, finish="length")


def score_prompt(logits: np.ndarray, request: Request) -> tuple[TokenScore | None, ...]:
    """Each prompt token's score from logits [T, V] of the tokens before; None for the first."""
    count = request.prompt_logprobs or 0
    return (None, *score_tokens(logits[:-1], request.prompt[1:], count))


def score_new(logits: np.ndarray, token: int, count: int | None) -> tuple[TokenScore, ...]:
    """The score of a sampled token, if it is wanted, from logits [V]."""
    return () if count is None else tuple(score_tokens(logits[None], [token], count))


def score_tokens(logits: np.ndarray, tokens: Sequence[int], count: int) -> list[TokenScore]:
    """log p of each token and of the `count` likeliest in its place, from raw logits [T, V].

        log p_i = x_i - max - log(sum of exp(x - max))

    in float64. Ties go to the lowest id. Raises SamplingError for logits that are no numbers.
    """
    scratch = np.empty(logits.shape[-1], np.float64)  # one for all rows: pages stay in caches
    return [
        score_token(row, token, count, scratch) for row, token in zip(logits, tokens, strict=True)
    ]


def score_token(logits: np.ndarray, token: int, count: int, scratch: np.ndarray) -> TokenScore:
    """The same of one token. scratch: float64 [V], overwritten."""
    best = likeliest(logits, max(count, 1))
    largest = np.float64(logits[best[0]])
    if not np.isfinite(largest):
        raise SamplingError("cannot score", name="logits", expected="numbers", found=largest)
    np.subtract(logits, largest, out=scratch)
    total = np.log(np.exp(scratch, out=scratch).sum())

    def log_p(index: int) -> float:
        return float(np.float64(logits[index]) - largest - total)

    top = tuple((index, log_p(index)) for index in best[:count])
    return TokenScore(token=token, logprob=log_p(token), top=top)


def likeliest(logits: np.ndarray, count: int) -> list[int]:
    """The `count` likeliest ids of logits [V], best first, ties to the lowest id.

    Looking for the largest again and again is faster than sorting a vocabulary."""
    if count > 1:
        logits = logits.copy()
    found = list[int]()
    for _ in range(min(count, len(logits))):
        found.append(int(np.argmax(logits)))
        if logits[found[-1]] == -np.inf:  # nothing else is left; those found are -inf as well
            rest = (i for i in range(len(logits)) if i not in found[:-1])
            return [*found[:-1], *rest][:count]
        if count > 1:
            logits[found[-1]] = -np.inf
    return found
