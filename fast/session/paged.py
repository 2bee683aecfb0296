"""A model over a cache of pages: a session's compiled programs, and which row has which pages.

Every program is compiled before the first request (`warm`), since a request that waits for a
compiler makes all others wait. A program takes arrays of the host, so that other processes can run
the same one (fast/parallel/leading.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax

from planish.fast.model import transformer as model
from planish.fast.model.backend import Backend, Draw, Positions, Tables
from planish.fast.model.cache import KVCache
from planish.fast.placement import give, on_cpu, put
from planish.fast.session.engine import Engine
from planish.fast.session.pages import PAGE, pages_for
from planish.fast.session.rows import (
    SCORED_TOKENS,
    STEP_TOKENS,
    Plan,
    Row,
    draw_of,
    padding_plan,
    wanted_size,
)
from planish.fast.session.sampling import RowDraw, prepare_draw
from planish.fast.session.slots import cache_bytes, empty_cache
from planish.reference.errors import PlanishError
from planish.reference.memory import free_memory
from planish.reference.text.generate import reserve
from planish.reference.text.requests import Request

Tell = Callable[[str], None]
Lead = Callable[..., None]  # a program's name, its arrays, and facts by name
DRAWN = tuple(field.name for field in fields(Draw))


def nobody(_: str, __: Mapping[str, np.ndarray], **___: Any) -> None:
    """The `lead` of a process without others."""


class PagedModel:
    """An engine's model over `pages` pages, for `rows` rows of at most `slots` slots each.

    few    tokens whose logits an ordinary step computes, a power of two
    lead   hears of every program before it is run here
    """

    def __init__(
        self,
        engine: Engine,
        rows: int,
        slots: int,
        pages: int,
        few: int,
        lead: Lead = nobody,
    ):
        self.engine, self.rows, self.slots, self.pages = engine, rows, slots, pages
        self.few, self.lead = 1 << (few - 1).bit_length(), lead
        self._sample = sampler_of(engine.backend)
        lead("open", {}, rows=rows, slots=slots, pages=pages, few=few)
        self._empty()

    def reset(self) -> None:
        """Begin with empty pages: a program that failed may have taken the last ones."""
        self.lead("reset", {})
        self._empty()

    @on_cpu
    def _empty(self) -> None:
        own, backend = self.engine.own, self.engine.backend
        self.table = np.zeros((self.rows, self.slots // PAGE), np.int32)
        empty = empty_cache(own, self.pages, PAGE, backend)
        self.cache: KVCache = self.engine.placement.cache(own, empty)

    def follow(self, name: str, arrays: Mapping[str, Any], **facts: Any) -> None:
        """Run a program of which another process's `lead` has heard."""
        if name == "reset":
            self._empty()
        elif name == "copy_page":
            self._copy_page(**arrays)
        elif name == "step":
            self._step(**arrays, prompt=facts["prompt"])
        else:
            self._decode(**arrays)

    def place(self, row: int, pages: Sequence[int]) -> None:
        """The pages of a row, in order."""
        self.table[row, : len(pages)] = pages

    def copy_page(self, source: int, target: int) -> None:
        given = {"source": np.array(source, np.int32), "target": np.array(target, np.int32)}
        self.lead("copy_page", given)
        self._copy_page(**given)

    @on_cpu
    def _copy_page(self, source: np.ndarray, target: np.ndarray) -> None:
        given = {"source": give(source), "target": give(target)}
        self.cache = self.engine.programs.run(copy_page, cache=self.cache, **given)

    def step(self, plan: Plan, prompt: int | None = None) -> jax.Array:
        """Logits [W, V] of the wanted tokens, and perhaps of more.

        prompt: the length of the only prompt, on which rotary angles may depend; None: of many."""
        most, count = wanted_size(len(plan.wanted), self.few), len(plan.tokens)
        least = SCORED_TOKENS if most == SCORED_TOKENS else count
        size = next(size for size in (*STEP_TOKENS, count) if size >= max(count, least))
        rows, tokens, positions = (
            np.pad(np.asarray(x, np.int32), (0, size - count), mode="edge")
            for x in (plan.rows, plan.tokens, plan.positions)
        )
        wanted = np.zeros(most, np.int32)
        wanted[: len(plan.wanted)] = plan.wanted
        given = {"rows": rows, "tokens": tokens[None], "positions": positions[None]}
        given |= {"wanted": wanted, "table": self.table.copy()}
        self.lead("step", given, prompt=prompt)
        return self._step(**given, prompt=prompt)

    @on_cpu
    def _step(
        self,
        rows: np.ndarray,
        tokens: np.ndarray,
        positions: np.ndarray,
        wanted: np.ndarray,
        table: np.ndarray,
        *,
        prompt: int | None,
    ) -> jax.Array:
        logits, self.cache = self.engine.programs.run_model(
            model.step_rows,
            tokens=give(tokens),
            cache=self.cache,
            positions=Positions(give(positions), self._tables(prompt), give(rows), give(table)),
            wanted=give(wanted),
        )
        return put(np.asarray(logits))

    @on_cpu
    def sample(self, logits: jax.Array, draws: Sequence[RowDraw]) -> np.ndarray:
        """The tokens of the first logits [W, V], by a draw for each; -1 from NaN or Inf."""
        draw = prepare_draw([replace(one, ends=()) for one in draws], 1, len(logits))
        found = self.engine.programs.run_here(self._sample, logits=logits, draw=draw)
        return np.asarray(found)[: len(draws)]

    def _tables(self, prompt: int | None = None) -> Tables:
        if prompt is not None:
            return self.engine.tables.of_prompt(self.slots, prompt)
        return self.engine.tables.of_slots(self.slots)

    def decode(self, rows: Sequence[Row], count: int) -> np.ndarray:
        """`count` tokens of every row, [count, B]; padding follows the rows."""
        size = 1 << (len(rows) - 1).bit_length()
        numbers, tokens = np.full(size, -1, np.int32), np.zeros(size, np.int32)
        index = np.zeros(size, np.int32)
        for i, row in enumerate(rows):
            numbers[i], tokens[i], index[i] = row.number, row.tokens[-1], len(row.tokens) - 1
        draw = prepare_draw([draw_of(row) for row in rows], count, size)
        given = {"rows": numbers, "tokens": tokens, "index": index, "table": self.table.copy()}
        given |= {name: np.asarray(getattr(draw, name)) for name in DRAWN}
        self.lead("decode", given)
        return self._decode(**given)[:count, : len(rows)]

    @on_cpu
    def _decode(
        self,
        rows: np.ndarray,
        tokens: np.ndarray,
        index: np.ndarray,
        table: np.ndarray,
        **drawn: np.ndarray,
    ) -> np.ndarray:
        found, self.cache = self.engine.programs.run_model(
            model.decode_tokens,
            tokens=give(tokens),
            cache=self.cache,
            positions=Positions(give(index), self._tables(), give(rows), give(table)),
            draw=Draw(**{name: give(array) for name, array in drawn.items()}),
        )
        return np.asarray(found)

    def warm(self, tell: Tell) -> None:
        """Compile every program, those of the first tokens first."""
        for size in STEP_TOKENS:
            tell(f"a step of {size} tokens")
            logits = self.step(padding_plan(size))
        self.sample(logits, [])
        if self.few < SCORED_TOKENS:
            tell("scores of a prompt")
            self.step(padding_plan(SCORED_TOKENS, SCORED_TOKENS))
        size = 1
        while size < 2 * self.rows:
            tell(f"tokens of {size} rows")
            self.decode([padding_row()] * size, 1)
            size *= 2
        self.copy_page(0, 0)


def sampler_of(backend: Backend) -> Any:
    """A program that samples one token from each of some logits [W, V]."""

    def sample_rows(logits: jax.Array, draw: Draw) -> jax.Array:
        return backend.sample(logits, draw.sampling, draw.uniform[0])

    return jax.jit(sample_rows)


def padding_row() -> Row:
    """No row of the cache."""
    request = Request(prompt=(0,), max_new_tokens=1)
    return Row(handle=0, request=request, number=-1, pages=[], tokens=[0], written=0, cached=0)


def page_count(engine: Engine, rows: int, slots: int, memory: int) -> int:
    """How many pages fit in `memory` bytes, at most those of all rows and as many prefixes.

    Raises PlanishError if that does not hold one row, MemoryError if the system has less."""
    one = cache_bytes(engine.own, 1, PAGE, engine.backend)
    least, most = slots // PAGE, 2 * rows * slots // PAGE
    if memory < least * one:
        raise PlanishError(
            f"does not hold one request of {slots} tokens",
            name="cache_memory",
            expected=f"at least {least * one} bytes",
            found=memory,
        )
    count = min(most, memory // one)
    reserve(count * one)
    return count


def default_memory(engine: Engine, rows: int, context: int) -> int:
    """Bytes of pages for all rows, at most a quarter of the memory that is free, but one row; and
    of one page more, into which the end of a known prefix is copied for a request that needs all
    the others."""
    page = cache_bytes(engine.own, 1, PAGE, engine.backend)
    one = pages_for(context) * page
    return max(one, min(rows * one, free_memory() // 4)) + page


@partial(jax.jit, donate_argnames=("cache",))
def copy_page(cache: KVCache, source: jax.Array, target: jax.Array) -> KVCache:
    """Copy a page of every layer."""

    def copy(x: jax.Array) -> jax.Array:
        page = lax.dynamic_slice_in_dim(x, source, 1)
        return lax.dynamic_update_slice_in_dim(x, page, target, 0)

    return jax.tree.map(copy, cache)
