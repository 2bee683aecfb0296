"""A session that answers many requests in the same steps, each as if it were alone.

A row of the cache is one request's. Each step computes the next token of every row whose prompt is
done, and in the same program tokens of the prompts that are not (filling.py); with no prompt left,
several tokens of every row in one dispatch. Rows join and leave between steps. Every token's
numbers depend on its own row only (native linears and attention), so neither the batch, nor chunks,
nor a prefix found in the pages (pages.py) change a bit of an answer. The models of which this is
not true have one row and share no prefixes: exactness.py.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import jax
import numpy as np

from planish.fast.native import backend as native_backend
from planish.fast.native.cache import can_tile
from planish.fast.session.answers import answer_row, answer_several, read_part
from planish.fast.session.engine import Engine
from planish.fast.session.exactness import why_alone
from planish.fast.session.filling import FEW_TOKENS, fill_step
from planish.fast.session.lookup import MOST_ROWS, VERIFIED, Costs, guesses_of
from planish.fast.session.paged import PagedModel, nobody, page_count
from planish.fast.session.pages import PAGE, Pages, Prefix, common_length, pages_for
from planish.fast.session.placing import computing
from planish.fast.session.rows import (
    STEP_TOKENS,
    Part,
    Row,
    draw_of,
    make_plan,
    make_verification,
    samples_on_device,
    tokens_of,
)
from planish.fast.session.sampling import MOST_TOKENS, RowDraw
from planish.fast.session.scheduler import Clock, next_count
from planish.reference.errors import PlanishError
from planish.reference.overflow import silence_overflow
from planish.reference.text.generate import Stop, check_fits
from planish.reference.text.requests import (
    Event,
    Request,
    Stats,
    check_request,
    describe_failure,
)


class Others(Protocol):
    """Other processes that run the programs of this one (fast/parallel/leading.py)."""

    def why_alone(self) -> str:
        """Why the layers that they have allow one request at a time only; empty if not so."""

    def lead(self, name: str, arrays: Mapping[str, np.ndarray], /, **facts: Any) -> None:
        """Let all run a program."""


WAITING_TOKENS = 4  # of one dispatch while a request waits for a row


class Batching:
    """A session over an engine with native kernels.

    slots      rows: requests that are answered at the same time
    context    tokens of a request, prompt and answer
    pages      of all rows and of the prefixes that are kept
    """

    def __init__(
        self,
        engine: Engine,
        slots: int,
        context: int,
        memory: int,
        *,
        lookup: int = 0,
        clock: Clock = time.perf_counter,
        others: Others | None = None,
    ):
        """memory: bytes of the pages, at least those of one request of `context` tokens. lookup:
        guesses of a step (lookup.py), at most; 0: none. others: the processes that run the same
        programs, where there are several."""
        self.config, self.clock = engine.config, clock
        if computing(engine.backend) is not native_backend or not can_tile(self.config):
            raise PlanishError(
                "cannot answer several requests at once",
                name="kernels",
                expected="native kernels, and a cache that they hold",
                found="XLA's",
            )
        self.alone = why_alone(engine.weights, self.config)
        if others is not None:
            self.alone = self.alone or others.why_alone()
        self.slots = 1 if self.alone else slots
        self.context = min(context, self.config.max_positions)
        most = pages_for(self.context) * PAGE
        count = page_count(engine, self.slots, most, memory)
        self.lookup = 0 if self.alone else lookup
        few = max(self.slots, VERIFIED if self.lookup else 1)
        lead = nobody if others is None else others.lead
        self.model = PagedModel(engine, self.slots, most, count, few, lead)
        self.notes = notes_of(self.alone, self.slots, count)
        self.costs = Costs()
        self.waiting: deque[tuple[int, Request]] = deque()
        self.cancelled: set[int] = set()
        self.submitted = 0
        self.seconds = 0.0  # of a token of a mixed step
        self._count = 1  # tokens of the next dispatch
        self._forget_all()

    def _forget_all(self) -> None:
        """No rows, and no known prefixes."""
        self.rows: list[Row] = []
        self.pages = Pages(self.model.pages)

    @property
    def is_idle(self) -> bool:
        return not self.rows and not self.waiting

    def stats(self) -> Stats:
        return Stats(
            running=len(self.rows),
            waiting=len(self.waiting),
            pages=self.pages.count,
            pages_used=len(self.pages.uses),
            programs=len(self.model.engine.programs.known()),
        )

    def warm(self, tell: Callable[[str], None] = lambda _: None) -> None:
        """Compile every program before the first request, so that none waits for it."""
        self.model.warm(tell)

    def submit(self, request: Request) -> int:
        check_request(self.config, request)
        check_fits(self.config, [request.prompt], Stop(request.max_new_tokens), self.context)
        self.submitted += 1
        self.waiting.append((self.submitted, request))
        return self.submitted

    def cancel(self, handle: int) -> None:
        self.cancelled.add(handle)

    @silence_overflow()
    def step(self) -> list[Event]:
        events = self._drop_cancelled()
        try:
            self._admit()
            found = self._compute()
        except Exception as problem:
            return events + self._fail_all(problem)
        ended = {event.handle for event in found if event.finish is not None}
        for row in [row for row in self.rows if row.handle in ended]:
            self._release(row)
        return events + found

    def _compute(self) -> list[Event]:
        reading = [row for row in self.rows if row.is_reading]
        answering = [row for row in self.rows if not row.is_reading]
        if reading:
            return self._mixed(answering, self._parts(len(answering), reading))
        if not answering:
            return []
        guesses = self._guesses(answering)
        if any(guesses):
            return self._verify(answering, guesses)
        if all(samples_on_device(row) for row in answering):
            return self._several(answering)
        return self._mixed(answering, [])

    # rows

    def _drop_cancelled(self) -> list[Event]:
        """End what was cancelled, also what still waits."""
        gone = set(self.cancelled)
        self.cancelled -= gone
        known = {handle for handle, _ in self.waiting} | {row.handle for row in self.rows}
        self.waiting = deque(item for item in self.waiting if item[0] not in gone)
        for row in [row for row in self.rows if row.handle in gone]:
            self._release(row)
        return [Event(handle=one, finish="cancelled") for one in sorted(gone & known)]

    def _admit(self) -> None:
        """Give waiting requests rows, in their order, while there are rows and pages."""
        while self.waiting and len(self.rows) < self.slots:
            handle, request = self.waiting[0]
            if self._is_being_read(request) or not self._admit_one(handle, request):
                return
            self.waiting.popleft()

    def _find(self, request: Request) -> Prefix:
        """What is known of a request's prompt."""
        if self.alone:
            return Prefix()
        return self.pages.find(request.prompt, request.salt, request.prompt_logprobs)

    def _is_being_read(self, request: Request) -> bool:
        """Whether a row reads much of this prompt, so that to wait for it saves computing it."""
        rows = [] if self.alone else [row for row in self.rows if row.helps(request)]
        pairs = [(row.cached, common_length(row.request.prompt, request.prompt)) for row in rows]
        much = [shared for cached, shared in pairs if shared >= cached + FEW_TOKENS]
        return bool(much) and max(much) > self._find(request).length + 1

    def _admit_one(self, handle: int, request: Request) -> bool:
        """A row with all pages that the request may need; False if there are not enough."""
        prefix = self._find(request)
        self.pages.use(prefix.pages)
        needed = pages_for(tokens_of(request)) - len(prefix.pages)
        kept = [] if prefix.partial is None else [prefix.partial]
        self.pages.use(kept)  # until it is copied
        if kept and needed > self.pages.available:  # it would wait for itself: compute these again
            self.pages.give_back(kept)
            prefix, kept = prefix.without_partial(), []
        if needed > self.pages.available:
            self.pages.give_back([*prefix.pages, *kept])
            return False
        new = self.pages.take(needed)
        if kept:
            self.model.copy_page(kept[0], new[0])
            self.pages.give_back(kept)
        used = {row.number for row in self.rows}
        number = next(i for i in range(self.slots) if i not in used)
        pages = [*prefix.pages, *new]
        self.model.place(number, pages)
        self.rows.append(
            Row(
                handle=handle,
                request=request,
                number=number,
                pages=pages,
                tokens=list(request.prompt),
                written=prefix.length,
                cached=prefix.length,
                scores=list(prefix.scores) or [None],
            )
        )
        return True

    def _release(self, row: Row) -> None:
        """The row does without its pages."""
        self.rows.remove(row)
        self._learn(row)
        self.pages.give_back(row.pages)

    def _learn(self, row: Row) -> None:
        """What the row's pages have becomes known."""
        if not self.alone:
            computed = row.tokens[: row.written]
            self.pages.learn(row.pages, computed, row.request.salt, row.kept_scores)

    def _fail_all(self, problem: Exception) -> list[Event]:
        """Every row fails, and the pages begin anew: a failed program may have taken them."""
        text = describe_failure(problem)
        failed = [Event(handle=row.handle, finish="error", error=text) for row in self.rows]
        self._forget_all()
        self.model.reset()
        return failed

    # steps

    def _mixed(self, answering: Sequence[Row], parts: Sequence[Part]) -> list[Event]:
        """One token of each row that is answered, and parts of prompts."""
        plan = make_plan(answering, parts)
        start = self.clock()
        on_device = self.model.step(plan, self._length(parts))
        logits = np.asarray(on_device)
        self._note(len(plan.tokens), self.clock() - start)
        ending = [part.row for part in parts if part.is_last and not part.row.is_scored]
        sampled = self._sample(on_device, [*answering, *ending])
        events = [
            answer_row(row, logits[i : i + 1], sampled.get(row.handle))
            for i, row in enumerate(answering)
        ]
        first = len(answering)
        for part in parts:
            last = first + len(part.wanted)
            events += read_part(part, logits[first:last], sampled.get(part.row.handle))
            self._learn(part.row)
            first = last
        if not parts:
            self.costs.note_plain(len(answering), self.clock() - start)
        return events

    def _sample(self, logits: jax.Array, rows: Sequence[Row]) -> dict[int, list[int]]:
        """The token of each row, whose logits come first, by its handle; without those that the
        host samples.

        The host is slow where it sorts a vocabulary, and fast where it looks for the largest."""
        drawn = [bool(samples_on_device(row) and row.request.sampling.temperature) for row in rows]
        if not any(drawn) or len(logits) != self.model.few:
            return {}
        found = self.model.sample(logits, [draw_of(row) for row in rows])
        pairs = zip(rows, found.tolist(), drawn, strict=True)
        return {row.handle: [token] for row, token, on_device in pairs if on_device}

    def _verify(self, rows: Sequence[Row], guesses: Sequence[list[int]]) -> list[Event]:
        """The next token of every row, and those of its guesses that are right."""
        start = self.clock()
        logits = self.model.step(make_verification(rows, guesses))
        draws, events, first = list[RowDraw](), list[Event](), 0
        for row, some in zip(rows, guesses, strict=True):
            draws += [replace(draw_of(row), step=row.new + i) for i in range(len(some) + 1)]
        sampled = self.model.sample(logits, draws).tolist()
        self.costs.note_verifying(len(rows), self.clock() - start)
        needed = self.costs.needed(len(rows)) * len(rows) / sum(map(bool, guesses))
        for row, some in zip(rows, guesses, strict=True):
            last = first + len(some) + 1
            device = sampled[first:last] if samples_on_device(row) else None
            event = answer_row(row, np.asarray(logits)[first:last], device, some)
            if some:
                row.guesser.learn(event.accepted, needed)
            events.append(event)
            first = last
        self._count = 1  # text that repeats itself is looked up again soon
        return events

    def _guesses(self, rows: Sequence[Row]) -> list[list[int]]:
        """The guesses of every row, perhaps none."""
        if not self.lookup or len(rows) > MOST_ROWS:
            return [[] for _ in rows]
        left = [row.request.max_new_tokens - row.new for row in rows]
        counts = [guesses_of(len(rows), self.lookup, one) for one in left]
        return [row.guesser.guess(count) for row, count in zip(rows, counts, strict=True)]

    def _parts(self, answering: int, reading: Sequence[Row]) -> list[Part]:
        """The tokens of prompts that the next step computes."""
        # where its bits depend on its chunks, these depend on its prompt only
        return fill_step(answering, reading, self.seconds, padded=bool(self.alone))

    def _note(self, tokens: int, seconds: float) -> None:
        """Remember how long a token of a large step takes."""
        if tokens >= STEP_TOKENS[3]:
            each = seconds / tokens
            self.seconds = each if not self.seconds else 0.7 * self.seconds + 0.3 * each

    def _length(self, parts: Sequence[Part]) -> int | None:
        """The length of the prompt of a step, where nothing else is in it."""
        return len(parts[0].row.request.prompt) if self.alone and parts else None

    def _several(self, rows: Sequence[Row]) -> list[Event]:
        """Several tokens of every row, sampled on the device in one dispatch."""
        left = min(row.request.max_new_tokens - row.new for row in rows)
        most = WAITING_TOKENS if self.waiting else MOST_TOKENS
        count = min(self._count, left, most)
        start = self.clock()
        found = self.model.decode(rows, count)
        seconds = self.clock() - start
        self.costs.note_plain(len(rows), seconds / count)
        self._count = next_count(count, seconds)
        columns = zip(rows, found.T.tolist(), strict=False)
        return [answer_several(row, tokens) for row, tokens in columns]


def notes_of(alone: str, slots: int, pages: int) -> tuple[str, ...]:
    """What was chosen, and why."""
    cache = f"{pages} pages of {PAGE} tokens"
    if alone:
        return (f"one request at a time, since {alone}", cache)
    return (f"up to {slots} requests at a time", cache)
