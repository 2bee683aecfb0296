"""A session that answers many requests in the same steps, each as if it were alone.

A row of the cache is one request's. Each step computes the next token of every row whose prompt is
done, and in the same program a chunk of the oldest prompt that is not; with no prompt left, several
tokens of every row in one dispatch. Rows join and leave between steps. Every token's numbers depend
on its own row only (native linears and attention), so neither the batch, nor chunks, nor a prefix
found in the pages (pages.py) change a bit of an answer.

Some models are computed row by row, without shared prefixes: those whose activations have one scale
for all tokens of a chunk (O2), whose rotary angles depend on the length of the prompt, or which
leave to XLA what differs in its last bits with the number of tokens: norms that no linear reads
(of outputs, of heads), and mixtures of experts.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import jax
import numpy as np
from jax import lax

from planish.fast.model import transformer as model
from planish.fast.model.backend import Positions, Tables
from planish.fast.model.cache import KVCache
from planish.fast.native import backend as native_backend
from planish.fast.native.cache import can_tile
from planish.fast.native.linear import norm_is_fused
from planish.fast.native.sampling import can_sample
from planish.fast.placement import on_cpu, put
from planish.fast.session.engine import Engine
from planish.fast.session.pages import PAGE, Pages, pages_for
from planish.fast.session.sampling import MOST_TOKENS, RowDraw, prepare_draw
from planish.fast.session.scheduler import Clock, next_count
from planish.fast.session.slots import cache_bytes, empty_cache
from planish.reference.errors import PlanishError
from planish.reference.linear import Linear
from planish.reference.model.config import ModelConfig
from planish.reference.model.weights import Block, Mlp, Weights
from planish.reference.text.generate import Stop, check_fits, reserve
from planish.reference.text.requests import (
    Event,
    Request,
    TokenScore,
    check_request,
    score_new,
    score_token,
)
from planish.reference.text.sampling import next_token

STEP_TOKENS = (8, 16, 32, 64, 128, 256, 512)  # a step is padded to one of these
SCORED_TOKENS = 64  # of a prompt whose every token is scored
MIXED_SECONDS = 0.12  # rows that are being answered wait no longer for a chunk of a prompt
WAITING_TOKENS = 4  # of one dispatch while a request waits for a row


@dataclass(kw_only=True)
class Row:
    """A request that has a row of the cache."""

    handle: int
    request: Request
    number: int  # the row
    pages: list[int]
    tokens: list[int]  # the prompt and the answer
    written: int  # tokens whose keys and values are in the pages
    cached: int  # of these, found in the pages
    scores: list[TokenScore | None] = field(default_factory=lambda: [None])

    @property
    def is_reading(self) -> bool:
        """Whether its prompt is not done."""
        return self.written < len(self.request.prompt)

    @property
    def new(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - len(self.request.prompt)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The tokens of one step: of rows that are answered, then a chunk of one prompt."""

    rows: list[int]
    tokens: list[int]
    positions: list[int]
    wanted: list[int]  # indices of tokens whose logits are wanted


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
        clock: Clock = time.perf_counter,
    ):
        """memory: bytes of the pages, at least those of one request of `context` tokens."""
        self.engine, self.config, self.clock = engine, engine.config, clock
        if engine.backend is not native_backend or not can_tile(self.config):
            raise PlanishError(
                "cannot answer several requests at once",
                name="kernels",
                expected="native kernels, and a cache that they hold",
                found="XLA's",
            )
        self.alone = answers_alone(engine.weights, self.config)
        self.slots = 1 if self.alone else slots
        self.context = pages_for(context) * PAGE
        self.count = page_count(engine, self.slots, self.context, memory)
        self.waiting: deque[tuple[int, Request]] = deque()
        self.cancelled: set[int] = set()
        self.submitted = 0
        self.seconds = 0.0  # of a token of a mixed step
        self._count = 1  # tokens of the next dispatch
        self._reset()

    def _reset(self) -> None:
        """Empty pages and rows."""
        self.rows: list[Row] = []
        self.pages = Pages(self.count)
        self.table = np.zeros((self.slots, self.context // PAGE), np.int32)
        self.cache = self._empty()

    @on_cpu
    def _empty(self) -> KVCache:
        return empty_cache(self.config, self.count, PAGE, self.engine.backend)

    @property
    def is_idle(self) -> bool:
        return not self.rows and not self.waiting

    def submit(self, request: Request) -> int:
        check_request(self.config, request)
        check_fits(self.config, [request.prompt], Stop(request.max_new_tokens), self.context)
        self.submitted += 1
        self.waiting.append((self.submitted, request))
        return self.submitted

    def cancel(self, handle: int) -> None:
        self.cancelled.add(handle)

    def step(self) -> list[Event]:
        events = self._drop_cancelled()
        self._admit()
        try:
            return events + self._compute()
        except Exception as problem:
            return events + self._fail_all(problem)

    def _compute(self) -> list[Event]:
        reading = [row for row in self.rows if row.is_reading]
        answering = [row for row in self.rows if not row.is_reading]
        if reading:
            return self._mixed(answering, reading[0])
        if not answering:
            return []
        if all(on_device(row.request) for row in answering):
            return self._several(answering)
        return self._mixed(answering, None)

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
            if not self._admit_one(*self.waiting[0]):
                return
            self.waiting.popleft()

    def _admit_one(self, handle: int, request: Request) -> bool:
        """A row with all pages that the request may need; False if there are not enough."""
        shares = not self.alone and request.prompt_logprobs is None
        prefix = self.pages.find(request.prompt if shares else (), request.salt)
        self.pages.use(prefix.pages)
        needed = pages_for(tokens_of(request)) - len(prefix.pages)
        kept = [] if prefix.partial is None else [prefix.partial]
        self.pages.use(kept)  # until it is copied
        if needed > self.pages.available:
            self.pages.give_back([*prefix.pages, *kept])
            return False
        new = self.pages.take(needed)
        if kept:
            self._copy_page(kept[0], new[0])
            self.pages.give_back(kept)
        used = {row.number for row in self.rows}
        number = next(i for i in range(self.slots) if i not in used)
        pages = [*prefix.pages, *new]
        self.table[number, : len(pages)] = pages
        self.rows.append(
            Row(
                handle=handle,
                request=request,
                number=number,
                pages=pages,
                tokens=list(request.prompt),
                written=prefix.length,
                cached=prefix.length,
            )
        )
        return True

    @on_cpu
    def _copy_page(self, source: int, target: int) -> None:
        given = {"source": put(np.int32(source)), "target": put(np.int32(target))}
        self.cache = self.engine.programs.run(copy_page, cache=self.cache, **given)

    def _release(self, row: Row) -> None:
        """The row's pages become known, or free."""
        self.rows.remove(row)
        known = [] if self.alone else row.tokens[: row.written]
        self.pages.release(row.pages, known, row.request.salt)

    def _fail_all(self, problem: Exception) -> list[Event]:
        """Every row fails, and the pages begin anew: a failed program may have taken them."""
        text = str(problem) if isinstance(problem, PlanishError) else f"internal error: {problem}"
        failed = [Event(handle=row.handle, finish="error", error=text) for row in self.rows]
        self._reset()
        return failed

    # steps

    def _mixed(self, answering: Sequence[Row], reading: Row | None) -> list[Event]:
        """One token of each row that is answered, and a chunk of one prompt."""
        count = 0 if reading is None else self._chunk(len(answering), reading)
        plan = make_plan(answering, reading, count)
        start = self.clock()
        logits = self._run_step(plan, reading)
        self._note(len(plan.tokens), self.clock() - start)
        events = [self._answer(row, logits[i]) for i, row in enumerate(answering)]
        if reading is not None:
            events += self._read(reading, count, logits[len(answering) :])
        return events

    def _chunk(self, answering: int, reading: Row) -> int:
        """How many tokens of a prompt the next step computes."""
        most = STEP_TOKENS[-1] if reading.request.prompt_logprobs is None else SCORED_TOKENS
        if answering and self.seconds:
            fitting = [size for size in STEP_TOKENS if size * self.seconds <= MIXED_SECONDS]
            most = min(most, max([STEP_TOKENS[2], *fitting]))
        left = len(reading.request.prompt) - reading.written
        return max(1, min(left, most - answering))

    def _note(self, tokens: int, seconds: float) -> None:
        """Remember how long a token of a large step takes."""
        if tokens >= STEP_TOKENS[3]:
            each = seconds / tokens
            self.seconds = each if not self.seconds else 0.7 * self.seconds + 0.3 * each

    @on_cpu
    def _run_step(self, plan: Plan, reading: Row | None) -> np.ndarray:
        """Logits [W, V] of the wanted tokens, and perhaps of more."""
        most, count = wanted_size(len(plan.wanted), self.slots), len(plan.tokens)
        least = SCORED_TOKENS if most == SCORED_TOKENS else count
        size = next(size for size in (*STEP_TOKENS, count) if size >= max(count, least))
        rows, tokens, positions = (
            np.pad(np.asarray(x, np.int32), (0, size - count), mode="edge")
            for x in (plan.rows, plan.tokens, plan.positions)
        )
        wanted = np.zeros(most, np.int32)
        wanted[: len(plan.wanted)] = plan.wanted
        where = Positions(
            put(positions[None]), self._tables(reading), put(rows), put(self.table.copy())
        )
        logits, self.cache = self.engine.programs.run_model(
            model.step_rows,
            tokens=put(tokens[None]),
            cache=self.cache,
            positions=where,
            wanted=put(wanted),
        )
        return np.asarray(logits)

    def _tables(self, reading: Row | None = None) -> Tables:
        if self.alone and reading is not None:
            return self.engine.tables.of_prompt(self.context, len(reading.request.prompt))
        return self.engine.tables.of_slots(self.context)

    def _answer(self, row: Row, logits: np.ndarray) -> Event:
        """The row's next token, from the logits [V] of its last."""
        row.written = len(row.tokens)
        request, prompt = row.request, len(row.request.prompt)
        try:
            text = row.tokens[prompt:]
            token = next_token(logits, request.sampling, request.prompt, text, request.choice)
        except PlanishError as problem:
            self._release(row)
            return Event(handle=row.handle, finish="error", error=str(problem))
        return self._add(row, [token], score_new(logits, token, request.logprobs))

    def _read(self, row: Row, count: int, logits: np.ndarray) -> list[Event]:
        """A chunk of a prompt is done; after the last one, its first token."""
        wants = row.request.prompt_logprobs
        if wants is not None:
            following = row.request.prompt[row.written + 1 : row.written + count + 1]
            pairs = zip(logits, following, strict=False)
            row.scores += [score_token(each, token, wants) for each, token in pairs]
        row.written += count
        if row.is_reading:
            return []
        last = logits[count - 1] if wants is not None else logits[0]
        prompt = tuple(row.scores) if wants is not None else ()
        if row.request.max_new_tokens == 0:
            self._release(row)
            done = Event(handle=row.handle, prompt=prompt, finish="length", cached=row.cached)
            return [done]
        return [replace(self._answer(row, last), prompt=prompt, cached=row.cached)]

    def _add(self, row: Row, found: Sequence[int], scores: tuple[TokenScore, ...] = ()) -> Event:
        """New tokens of a row: up to an end, or to as many as it wants."""
        ends = row.request.ends
        kept = next((i for i, token in enumerate(found) if token in ends), len(found))
        row.tokens += found[:kept]
        event = Event(handle=row.handle, tokens=tuple(found[:kept]), scores=scores)
        if kept < len(found):
            event = replace(event, end=found[kept], finish="stop")
        elif row.new == row.request.max_new_tokens:
            event = replace(event, finish="length")
        if event.finish:
            row.written = min(row.written, len(row.tokens))
            self._release(row)
        return event

    def _several(self, rows: Sequence[Row]) -> list[Event]:
        """Several tokens of every row, sampled on the device in one dispatch."""
        left = min(row.request.max_new_tokens - row.new for row in rows)
        most = WAITING_TOKENS if self.waiting else MOST_TOKENS
        count = min(self._count, left, most)
        start = self.clock()
        found = self._run_tokens(rows, count)
        self._count = next_count(count, self.clock() - start)
        events = []
        for row, tokens in zip(rows, found.T.tolist(), strict=False):
            good = next((i for i, token in enumerate(tokens) if token < 0), count)
            row.written += good
            if good == 0:
                self._release(row)
                error = "logits: cannot sample (found NaN or Inf)"
                events.append(Event(handle=row.handle, finish="error", error=error))
            else:
                events.append(self._add(row, tokens[:good]))
        return events

    @on_cpu
    def _run_tokens(self, rows: Sequence[Row], count: int) -> np.ndarray:
        """`count` tokens of every row, [count, B]; padding follows the rows."""
        size = 1 << (len(rows) - 1).bit_length()
        numbers, tokens = np.full(size, -1, np.int32), np.zeros(size, np.int32)
        index = np.zeros(size, np.int32)
        for i, row in enumerate(rows):
            numbers[i], tokens[i], index[i] = row.number, row.tokens[-1], len(row.tokens) - 1
        where = Positions(put(index), self._tables(), put(numbers), put(self.table.copy()))
        found, self.cache = self.engine.programs.run_model(
            model.decode_tokens,
            tokens=put(tokens),
            cache=self.cache,
            positions=where,
            draw=prepare_draw([draw_of(row) for row in rows], count, size),
        )
        return np.asarray(found)[:count, : len(rows)]

    def warm(self, tell: Callable[[str], None] = lambda _: None) -> None:
        """Compile every program before the first request, so that none waits for it."""
        for size in STEP_TOKENS:
            tell(f"a step of {size} tokens")
            self._run_step(padding_plan(size), None)
        if wanted_size(1, self.slots) < SCORED_TOKENS:
            plan = replace(padding_plan(SCORED_TOKENS), wanted=list(range(SCORED_TOKENS)))
            self._run_step(plan, None)
        size = 1
        while size < 2 * self.slots:
            tell(f"tokens of {size} rows")
            self._warm_tokens(size)
            size *= 2
        self._copy_page(0, 0)

    def _warm_tokens(self, size: int) -> None:
        request = Request(prompt=(0,), max_new_tokens=1)
        none = Row(handle=0, request=request, number=-1, pages=[], tokens=[0], written=0, cached=0)
        self._run_tokens([none] * size, 1)


def answers_alone(weights: Weights, config: ModelConfig) -> bool:
    """Whether a token's bits depend on others of its step, or on the length of its prompt."""
    leaves = jax.tree.leaves(weights.blocks, is_leaf=lambda leaf: isinstance(leaf, Linear))
    linears = [leaf for leaf in leaves if isinstance(leaf, Linear)]
    shared_scale = any(linear.activation == "per_tensor" for linear in linears)
    by_length = any(rope.by_length for rope in config.ropes)
    return shared_scale or by_length or config.moe is not None or norms_by_xla(weights, config)


def norms_by_xla(weights: Weights, config: ModelConfig) -> bool:
    """Whether XLA computes a norm, whose last bits differ with the number of tokens of a step.

    The kernels compute one in the call of the linears that read it, if these can share it.
    """
    apart = config.norm_placement == "post" or config.norms_output or config.qk_norm is not None
    if apart or weights.embed_norm is not None:
        return True
    return not all(norm_is_fused(group) for block in weights.blocks for group in readers(block))


def readers(block: Block) -> Iterator[tuple[Linear, ...]]:
    """The linears of a block that read one norm in one call."""
    yield block.q, block.k, block.v
    if isinstance(block.mlp, Mlp):
        yield (block.mlp.up,) if block.mlp.gate is None else (block.mlp.gate, block.mlp.up)


def page_count(engine: Engine, slots: int, context: int, memory: int) -> int:
    """How many pages fit in memory, at most those of all rows and as many prefixes."""
    one = cache_bytes(engine.config, 1, PAGE, engine.backend)
    least, most = context // PAGE, 2 * slots * context // PAGE
    if memory < least * one:
        raise PlanishError(
            f"does not hold one request of {context} tokens",
            name="cache_memory",
            expected=f"at least {least * one} bytes",
            found=memory,
        )
    count = min(most, memory // one)
    reserve(count * one)
    return count


def make_plan(answering: Sequence[Row], reading: Row | None, count: int) -> Plan:
    """The last token of rows that are answered, and `count` tokens of a prompt."""
    rows = [row.number for row in answering]
    tokens = [row.tokens[-1] for row in answering]
    positions = [len(row.tokens) - 1 for row in answering]
    wanted = list(range(len(rows)))
    if reading is not None:
        end = reading.written + count
        if reading.request.prompt_logprobs is not None:
            wanted += range(len(rows), len(rows) + count)
        elif end == len(reading.request.prompt):
            wanted.append(len(rows) + count - 1)
        rows += [reading.number] * count
        tokens += reading.tokens[reading.written : end]
        positions += range(reading.written, end)
    return Plan(rows=rows, tokens=tokens, positions=positions, wanted=wanted)


def padding_plan(size: int) -> Plan:
    """A step of no row."""
    nothing = [0] * size
    return Plan(rows=[-1] * size, tokens=nothing, positions=nothing, wanted=[0])


def wanted_size(count: int, slots: int) -> int:
    """How many tokens' logits a step computes: as many as there are rows, or those of scores."""
    few = 1 << (slots - 1).bit_length()
    return few if count <= few else SCORED_TOKENS


def tokens_of(request: Request) -> int:
    """Slots that a request takes: its last new token needs none."""
    return len(request.prompt) + max(request.max_new_tokens - 1, 0)


def on_device(request: Request) -> bool:
    """Whether the kernels sample its tokens, and nothing else is wanted of the logits."""
    return request.logprobs is None and can_sample(request.sampling)


def draw_of(row: Row) -> RowDraw:
    """How the device draws a row's next tokens."""
    request = row.request
    return RowDraw(sampling=request.sampling, row=request.choice, step=row.new, ends=request.ends)


@partial(jax.jit, donate_argnames=("cache",))
def copy_page(cache: KVCache, source: jax.Array, target: jax.Array) -> KVCache:
    """Copy a page of every layer."""

    def copy(x: jax.Array) -> jax.Array:
        page = lax.dynamic_slice_in_dim(x, source, 1)
        return lax.dynamic_update_slice_in_dim(x, page, target, 0)

    return jax.tree.map(copy, cache)
