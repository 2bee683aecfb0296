"""A checkpoint ready to run: weights on the device, compiled programs, a reused cache."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from planish.fast.model import transformer as model
from planish.fast.model.backend import Backend, Draw, Positions, Tables
from planish.fast.model.cache import KVCache
from planish.fast.native import backend as native_backend
from planish.fast.placement import give, on_cpu
from planish.fast.session import slots as cache_slots
from planish.fast.session.chunks import padded_length, split_prompt
from planish.fast.session.placing import OneDevice, Placement
from planish.fast.session.rotary import RotaryTables
from planish.fast.session.scheduler import Batch, Clock, Generation, Request
from planish.fast.session.slots import CachePool
from planish.fast.xla import backend as xla_backend
from planish.reference.files.load import Checkpoint, load_weights
from planish.reference.files.safetensors import ask_huge_pages
from planish.reference.memory import ENGINE, FORWARD, GENERATE, LOSSES, memory_errors
from planish.reference.text.evaluate import Scores, share_length
from planish.reference.text.generate import Stop, check_continuations, check_fits
from planish.reference.text.sampling import Sampling


class Engine:
    """A checkpoint run by JAX.

    config, weights    the model; weights as the backend reads them
    own                the layers that run here: all, or those of one stage
    programs           those compiled so far
    load_seconds       time to open it
    """

    name = "fast"

    @on_cpu
    @memory_errors(ENGINE)
    def __init__(
        self,
        checkpoint: Checkpoint,
        native: bool = False,
        clock: Clock = time.perf_counter,
        placement: Placement | None = None,
    ):
        """native: use the kernels of native/library.py, which must be loaded. clock: measures
        dispatches, to decide how many tokens the next one computes. placement: the devices, by
        default the CPU of this process."""
        start = time.perf_counter()
        self.config, self.clock = checkpoint.config, clock
        self.placement = OneDevice() if placement is None else placement
        self.own = self.placement.own_layers(self.config)
        inner: Backend = native_backend if native else xla_backend
        self.backend = self.placement.backend(self.config, inner)
        if placement is None:
            ask_huge_pages(checkpoint.entries)
        loaded = load_weights(checkpoint, tiled=native)
        self.weights = self.placement.weights(self.config, loaded, self.backend)
        self.programs = self.placement.programs(self.own, self.weights, self.backend)
        place = partial(self.placement.cache, self.own)
        self.caches = CachePool(self.own, self.backend, place)
        self.tables = RotaryTables(self.config)
        self._insert = jax.jit(cache_slots.insert, donate_argnums=(0,))
        self.load_seconds = time.perf_counter() - start

    @property
    def compile_seconds(self) -> float:
        """Time spent compiling so far, or reading programs that were compiled before."""
        return self.programs.seconds

    @memory_errors(FORWARD)
    def forward(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits float32 [T, V] of every token of one sequence."""
        check_fits(self.config, [tokens], Stop(0), self.config.max_positions)
        chunks = self._chunks(tokens, len(tokens), model.forward)
        logits = [(found, count) for found, count, _ in chunks]
        return np.concatenate([np.asarray(found)[0, :count] for found, count in logits])

    @memory_errors(LOSSES)
    def losses(self, tokens: Sequence[int]) -> np.ndarray:
        """-log p of tokens 1..T-1 of one sequence, each given those before it, float32 [T - 1]."""
        check_fits(self.config, [tokens], Stop(0), self.config.max_positions)
        cache, found = self._empty_cache(1, len(tokens)), []
        tables = self.tables.of_prompt(cache.slots, len(tokens))
        following = split_prompt([*tokens[1:], tokens[-1]])  # the last token has none
        for chunk, targets in zip(split_prompt(tokens), following, strict=True):
            given = chunk.tokens, chunk.positions, cache, tables
            part, cache = self._run(model.losses, *given, targets=targets.tokens)
            found.append((jax.block_until_ready(part), chunk.count))
        self.caches.give_back(cache)
        parts = [np.asarray(part)[0, :count] for part, count in found]
        return np.concatenate(parts)[: len(tokens) - 1]

    @memory_errors(FORWARD)
    def score(self, context: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[Scores]:
        """Score each continuation of a context; both are token ids, at least one in each."""
        check_continuations(self.config, context, continuations)
        groups = share_length(self.config, continuations)
        return [score for some in groups for score in self._score_group(context, some)]

    def _score_group(
        self, context: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> list[Scores]:
        """The same; the context is computed once, and each continuation overwrites the last."""
        first, longest = len(context) - 1, max(map(len, continuations))
        ahead = padded_length(longest)
        cache = self._empty_cache(1, first + ahead, ahead)
        tables = self.tables.of_prompt(cache.slots, len(context) + longest)
        for chunk in split_prompt(context[:-1]):
            _, cache = self._run(model.prefill, chunk.tokens, chunk.positions, cache, tables)
        found = []
        for targets in continuations:
            parts, given = [], split_prompt([context[-1], *targets[:-1]], first)
            for chunk, wanted in zip(given, split_prompt(targets), strict=True):
                state = chunk.tokens, chunk.positions, cache, tables
                part, cache = self._run(model.scores, *state, targets=wanted.tokens)
                parts.append(np.asarray(part)[0, : chunk.count])
            losses, likeliest = np.concatenate(parts).T
            found.append(Scores(losses=losses, likeliest=likeliest > 0))
        self.caches.give_back(cache)
        return found

    def prefill(
        self, tokens: Sequence[int], slots: int, all_logits: bool = False
    ) -> Iterator[tuple[np.ndarray, KVCache]]:
        """Chunk by chunk: logits [T, V] (or [1, V] of the last token) and the cache so far.

        The cache of a chunk is donated to the next: only the last one may be kept.
        """
        program = model.forward if all_logits else model.prefill
        for logits, count, cache in self._chunks(tokens, slots, program):
            yield np.asarray(logits)[0, :count], cache

    def _chunks(
        self, tokens: Sequence[int], slots: int, program: Any
    ) -> Iterator[tuple[jax.Array, int, KVCache]]:
        """Chunk by chunk: logits [1, T, V], of how many tokens, and the cache so far.

        Where the model is cut in stages, only np.asarray waits for the last of them.
        """
        cache = self._empty_cache(1, slots)
        tables = self.tables.of_prompt(cache.slots, len(tokens))
        for chunk in split_prompt(tokens):
            logits, cache = self._run(program, chunk.tokens, chunk.positions, cache, tables)
            yield jax.block_until_ready(logits), chunk.count, cache

    @on_cpu
    def prefill_batch(
        self, prompts: Sequence[Sequence[int]], stop: Stop
    ) -> tuple[np.ndarray, KVCache]:
        """Prefill each prompt by itself, without padding to the longest, then join their caches."""
        slots = max(len(prompt) for prompt in prompts) + stop.max_new_tokens - 1
        if len(prompts) == 1:
            return self._prefill_last(prompts[0], slots)
        batch, last = self._empty_cache(len(prompts), slots), []
        for row, prompt in enumerate(prompts):
            logits, single = self._prefill_last(prompt, slots)
            index = give(np.array(row, np.int32))
            batch = self.programs.run(self._insert, cache=batch, single=single, row=index)
            last.append(logits[0])
        return np.stack(last), batch

    def decode_step(
        self, tokens: np.ndarray, positions: np.ndarray, cache: KVCache
    ) -> tuple[np.ndarray, KVCache]:
        """Logits [B, V] after one more token per row, tokens and positions [B].

        The cache given is consumed."""
        tables = self.tables.of_slots(cache.slots)
        logits, cache = self._run(model.decode_step, tokens, positions, cache, tables)
        return np.asarray(logits), cache

    def decode_tokens(
        self, tokens: np.ndarray, positions: np.ndarray, cache: KVCache, draw: Draw
    ) -> tuple[np.ndarray, KVCache]:
        """draw.count more tokens for every row, [count, B], in one dispatch; tokens and positions
        [B]. The cache given is consumed."""
        given = tokens, positions, cache, self.tables.of_slots(cache.slots)
        found, cache = self._run(model.decode_tokens, *given, draw=draw)
        return np.asarray(found)[: int(draw.count)], cache

    @on_cpu
    def take_rows(self, cache: KVCache, rows: Sequence[int]) -> KVCache:
        """The cache of some rows of a batch. The cache given is consumed layer by layer, so that at
        most one layer is in memory twice."""
        indices, layers = give(np.array(rows, np.int32)), []
        for layer in cache.layers:
            layers.append(self.programs.run(cache_slots.take_rows, layer=layer, rows=indices))
            for array in layer.arrays:
                array.delete()
        return KVCache(tuple(layers))

    def generate(
        self, prompts: Sequence[Sequence[int]], stop: Stop, sampling: Sampling
    ) -> Iterator[tuple[int, int]]:
        """Yield (row, token) as tokens are sampled, all rows of the batch in each step."""
        sampling.check(self.config.vocab_size)
        check_fits(self.config, prompts, stop, self.config.max_positions)
        if stop.max_new_tokens == 0:
            return
        with memory_errors(f"{GENERATE}, or an int8 cache"):
            yield from self._tokens(prompts, stop, sampling)

    def _tokens(
        self, prompts: Sequence[Sequence[int]], stop: Stop, sampling: Sampling
    ) -> Iterator[tuple[int, int]]:
        """`generate` of at least one token."""
        logits, cache = self.prefill_batch(prompts, stop)
        request = Request(
            prompts=prompts,
            stop=stop,
            sampling=sampling,
            eos=() if stop.ignore_eos else self.config.eos_token_ids,
            on_device=self.backend.can_sample(sampling),
        )
        lengths = np.array([len(prompt) for prompt in prompts])
        batch = Batch(
            rows=tuple(range(len(prompts))),
            tokens=np.zeros(len(prompts), np.int32),
            positions=lengths,
            cache=cache,
        )
        generation = Generation(self, request, batch, self.clock)
        try:
            yield from generation.tokens(logits)
        finally:
            self.caches.give_back(generation.batch.cache)

    @on_cpu
    def _empty_cache(self, batch: int, slots: int, ahead: int = 0) -> KVCache:
        return self.caches.take(batch, slots, ahead)

    def _prefill_last(self, tokens: Sequence[int], slots: int) -> tuple[np.ndarray, KVCache]:
        """Logits [1, V] of the last token of a prompt, and the cache."""
        logits, _, cache = deque(self._chunks(tokens, slots, model.prefill), maxlen=1)[0]
        return np.asarray(logits)[0], cache

    @on_cpu
    def _run(
        self,
        program: Any,
        tokens: np.ndarray,
        positions: np.ndarray,
        cache: KVCache,
        tables: Tables,
        **rest: Any,
    ) -> Any:
        """Run one of the model's programs on tokens and positions from the host."""
        index = give(np.asarray(positions, np.int32))
        return self.programs.run_model(
            program,
            tokens=give(np.asarray(tokens, np.int32)),
            cache=cache,
            positions=Positions(index, tables),
            **rest,
        )
