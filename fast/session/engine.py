"""A checkpoint ready to run: weights on the device, programs compiled once, a cache handed on.

A prompt is computed in chunks of at most 512 tokens, each padded to a power of two or three
quarters of one, so that any prompt compiles at most thirteen prefill programs and needs memory for
one chunk; a cache has a power of two of slots, or a multiple of 512.

Tokens a second of a prompt of 2048 by the size of its chunks (native kernels, 4 cores of an AMD
EPYC Zen 5, medians of 4 rounds in turns):

    chunk         128    256    512   1024   2048
    1.1B W4A8     890    928    948    937    900
    110M W8A8    5751   6780   7377   7429   5746
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from planish.fast.model import transformer as model
from planish.fast.model.cache import KEY_SLOTS, KVCache, cache_bytes, can_tile, empty_cache, insert
from planish.fast.model.weights import device_weights
from planish.fast.native import sampling as native_sampling
from planish.fast.placement import on_cpu
from planish.reference.errors import SamplingError
from planish.reference.files.load import Checkpoint, load_weights
from planish.reference.memory import ENGINE, FORWARD, GENERATE, LOSSES, memory_errors
from planish.reference.model.rope import Rope, decoding_rotations, rotations
from planish.reference.model.transformer import PREFILL_CHUNK
from planish.reference.text.generate import Stop, check_fits, reserve
from planish.reference.text.sampling import Sampling, sample, uniform

SMALLEST_CHUNK = 8
MOST_TOKENS = 16  # of one dispatch
NEVER = -2  # no token's id
DISPATCH_SECONDS = 0.03  # text comes at least so often, where a token does not take longer


def chunk_size(count: int) -> int:
    """Tokens that a chunk of `count` is padded to: a power of two, or three quarters of one."""
    whole = max(SMALLEST_CHUNK, 1 << (count - 1).bit_length())
    return whole * 3 // 4 if SMALLEST_CHUNK < whole and count <= whole * 3 // 4 else whole


def slot_count(count: int) -> int:
    """Slots of a cache for `count` tokens: a power of two up to 512, then a multiple of 512."""
    if count > PREFILL_CHUNK:
        return -(-count // PREFILL_CHUNK) * PREFILL_CHUNK
    return max(KEY_SLOTS, 1 << (count - 1).bit_length())


@on_cpu
def place_chunk(tokens: Sequence[int], start: int) -> tuple[jax.Array, jax.Array]:
    """The chunk from `start` on, padded by repeating its last token: ids and positions [1, T]."""
    chunk = np.asarray(tokens[start : start + PREFILL_CHUNK], np.int32)
    positions = np.arange(start, start + len(chunk), dtype=np.int32)
    spare = (0, chunk_size(len(chunk)) - len(chunk))
    ids, places = (jnp.asarray(np.pad(x, spare, mode="edge")[None]) for x in (chunk, positions))
    return ids, places


def use_compilation_cache(directory: Path | None) -> None:
    """Keep compiled programs in a directory, or nowhere.

    It must be the user's own, for they are trusted. One that cannot be read or written costs
    time only, and jax would say so in two lines for every program.
    """
    words = "Error (reading|writing) persistent compilation cache entry"
    warnings.filterwarnings("ignore", words)
    jax.config.update("jax_compilation_cache_dir", None if directory is None else str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def sample_rows(logits: np.ndarray, sampling: Sampling, step: int) -> np.ndarray:
    """The next token of each row of logits [B, V], on the host."""
    return np.array([sample(row, sampling, index, step) for index, row in enumerate(logits)])


@on_cpu
def draws(sampling: Sampling, rows: int, step: int, count: int, eos: Sequence[int]) -> model.Draw:
    """What the device needs to sample `count` tokens of each row from `step` on."""
    numbers = np.zeros((MOST_TOKENS, rows))
    if sampling.temperature > 0:
        for index, row in np.ndindex(count, rows):
            numbers[index, row] = uniform(sampling.seed, row, step + index)
    settings = jnp.asarray(native_sampling.sampling_settings(sampling))
    ends = jnp.asarray(np.array(eos or (NEVER,), np.int32))
    return model.Draw(settings, jnp.asarray(native_sampling.as_int32(numbers)), ends)


def checked(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Sampled tokens [count, B] step by step; where the kernel found no numbers it left -1."""
    for tokens in rows:
        if (tokens < 0).any():
            raise SamplingError("cannot sample", name="logits", found="NaN or Inf")
        yield tokens


@on_cpu
def on_device(tables: tuple[np.ndarray, np.ndarray]) -> tuple[jax.Array, jax.Array]:
    """cos and sin."""
    cos, sin = (jnp.asarray(table) for table in tables)
    return cos, sin


def paced(count: int, seconds: float) -> int:
    """How many tokens the next dispatch computes, after one of `count` took some seconds."""
    return max(1, min(MOST_TOKENS, 2 * count, int(count * DISPATCH_SECONDS / seconds)))


class Engine:
    """A checkpoint run by JAX. `load_seconds` and `compile_seconds` came before running."""

    name = "fast"

    @on_cpu
    @memory_errors(ENGINE)
    def __init__(self, checkpoint: Checkpoint, native: bool = False):
        """`native`: weights for the kernels of kernels/library.py, which must be loaded."""
        start = time.perf_counter()
        self.config = checkpoint.config
        self.native = native
        self.tiled_cache = native and can_tile(self.config)
        self.weights = device_weights(load_weights(checkpoint, tiled=native))
        self.load_seconds = time.perf_counter() - start
        self.compile_seconds = 0.0
        self._spare: KVCache | None = None
        self._programs: dict[Any, Callable[..., Any]] = {}
        self._tables: dict[tuple[Rope, int], tuple[jax.Array, jax.Array]] = {}
        self._insert = jax.jit(insert, donate_argnums=(0,))

    @memory_errors(FORWARD)
    def forward(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits float32 [T, V] of every token of one sequence."""
        check_fits(self.config, [tokens], Stop(0), self.config.max_positions)
        logits = [chunk for chunk, _ in self.prefill(tokens, len(tokens), all_logits=True)]
        return np.concatenate(logits)

    @memory_errors(LOSSES)
    def losses(self, tokens: Sequence[int]) -> np.ndarray:
        """-log p of tokens 1..T-1 of one sequence, each given those before it, float32 [T - 1]."""
        check_fits(self.config, [tokens], Stop(0), self.config.max_positions)
        cache, found = self._empty_cache(1, len(tokens)), []
        tables = self._prompt_tables(cache.slots, len(tokens))
        targets = [*tokens[1:], tokens[-1]]  # the last token has none
        for start in range(0, len(tokens), PREFILL_CHUNK):
            chunk = *place_chunk(tokens, start), cache, tables, place_chunk(targets, start)[0]
            part, cache = self._run(model.losses, self.weights, *chunk)
            found.append(np.asarray(part)[0, : min(PREFILL_CHUNK, len(tokens) - start)])
        self._spare = cache if self.tiled_cache else None
        return np.concatenate(found)[: len(tokens) - 1]

    def prefill(
        self, tokens: Sequence[int], slots: int, all_logits: bool = False
    ) -> Iterator[tuple[np.ndarray, KVCache]]:
        """Chunk by chunk: logits [T, V] (or [1, V] of the last token) and the cache so far.

        The cache of a chunk is donated to the next: only the last one may be kept.
        """
        cache = self._empty_cache(1, slots)
        tables = self._prompt_tables(cache.slots, len(tokens))
        for start in range(0, len(tokens), PREFILL_CHUNK):
            chunk = *place_chunk(tokens, start), cache, tables
            logits, cache = self._run(model.prefill, self.weights, *chunk, all_logits=all_logits)
            yield np.asarray(logits)[0, : min(PREFILL_CHUNK, len(tokens) - start)], cache

    @on_cpu
    def decode_step(
        self, tokens: np.ndarray, positions: np.ndarray, cache: KVCache
    ) -> tuple[np.ndarray, KVCache]:
        """Logits [B, V] after one more token per row, tokens and positions [B].

        The cache given is consumed."""
        step = jnp.asarray(tokens, jnp.int32), jnp.asarray(positions, jnp.int32)
        tables = self._decoding_tables(cache.slots)
        logits, cache = self._run(model.decode_step, self.weights, *step, cache, tables)
        return np.asarray(logits), cache

    def generate(
        self, prompts: Sequence[Sequence[int]], stop: Stop, sampling: Sampling
    ) -> Iterator[tuple[int, int]]:
        """Yield (row, token) as tokens come, every row of the batch in each step."""
        sampling.check(self.config.vocab_size)
        check_fits(self.config, prompts, stop, self.config.max_positions)
        if stop.max_new_tokens == 0:
            return
        with memory_errors(f"{GENERATE}, or an int8 cache"):
            yield from self._tokens(prompts, stop, sampling)

    def _tokens(
        self, prompts: Sequence[Sequence[int]], stop: Stop, sampling: Sampling
    ) -> Iterator[tuple[int, int]]:
        """`generate` where at least one token is asked for."""
        eos = () if stop.ignore_eos else self.config.eos_token_ids
        active = set(range(len(prompts)))
        for tokens in self._token_rows(prompts, stop, sampling, eos):
            for row in sorted(active):
                if tokens[row] in eos:
                    active.remove(row)
                else:
                    yield row, int(tokens[row])
            if not active:
                return

    def _token_rows(
        self,
        prompts: Sequence[Sequence[int]],
        stop: Stop,
        sampling: Sampling,
        eos: Sequence[int],
    ) -> Iterator[np.ndarray]:
        """The next token of every row [B], max_new_tokens times; ended rows go on."""
        logits, cache = self.prefill_batch(prompts, stop)
        tokens = sample_rows(logits, sampling, 0)
        lengths = np.array([len(prompt) for prompt in prompts])
        if self.native:
            yield from self._decode_natively(tokens, lengths, cache, stop, sampling, eos)
            return
        yield tokens
        for step in range(1, stop.max_new_tokens):
            positions = np.minimum(lengths + step - 1, cache.slots - 1)  # of ended rows
            logits, cache = self.decode_step(tokens, positions, cache)
            tokens = sample_rows(logits, sampling, step)
            yield tokens

    def _decode_natively(
        self,
        tokens: np.ndarray,
        lengths: np.ndarray,
        cache: KVCache,
        stop: Stop,
        sampling: Sampling,
        eos: Sequence[int],
    ) -> Iterator[np.ndarray]:
        """Several tokens per dispatch, as many as are computed in the time between two frames."""
        step, count, rows = 0, 1, tokens[None]
        try:
            while True:
                yield from checked(rows)
                step += len(rows)
                count = min(count, stop.max_new_tokens - step)
                if count == 0:
                    return
                start = time.perf_counter()
                positions = np.minimum(lengths + step - 1, cache.slots - 1)  # of ended rows
                draw = draws(sampling, len(lengths), step, count, eos)
                rows, cache = self._decode_tokens(rows[-1], positions, cache, draw, count)
                count = paced(count, time.perf_counter() - start)
        finally:
            self._spare = cache if self.tiled_cache else None

    @on_cpu
    def _decode_tokens(
        self,
        tokens: np.ndarray,
        positions: np.ndarray,
        cache: KVCache,
        draw: model.Draw,
        count: int,
    ) -> tuple[np.ndarray, KVCache]:
        """`count` more tokens for every row, [count, B], in one dispatch. The cache is consumed."""
        step = jnp.asarray(tokens, jnp.int32), jnp.asarray(positions, jnp.int32)
        rest = self._decoding_tables(cache.slots), draw, jnp.int32(count)
        found, cache = self._run(
            model.decode_tokens, self.weights, *step, cache, *rest, most=MOST_TOKENS
        )
        return np.asarray(found)[:count], cache

    @on_cpu
    def prefill_batch(
        self, prompts: Sequence[Sequence[int]], stop: Stop
    ) -> tuple[np.ndarray, KVCache]:
        """Each prompt by itself, at its own length; then side by side in one cache."""
        slots = max(len(prompt) for prompt in prompts) + stop.max_new_tokens - 1
        if len(prompts) == 1:
            return self._last(self.prefill(prompts[0], slots))
        batch, last = self._empty_cache(len(prompts), slots), []
        for row, prompt in enumerate(prompts):
            logits, cache = self._last(self.prefill(prompt, slots))
            batch = self._insert(batch, cache, jnp.int32(row))
            last.append(logits[0])
        return np.stack(last), batch

    @on_cpu
    def _empty_cache(self, batch: int, slots: int) -> KVCache:
        """Slots to be written; the last generation's, if they fit, as the kernels read no other."""
        slots = slot_count(slots)
        spare, self._spare = self._spare, None
        if spare is not None and spare.shape == (batch, slots):
            return spare
        reserve(cache_bytes(self.config, batch, slots, self.tiled_cache))
        return empty_cache(self.config, batch, slots, self.tiled_cache)

    @staticmethod
    def _last(chunks: Iterator[tuple[np.ndarray, KVCache]]) -> tuple[np.ndarray, KVCache]:
        """What the last chunk left; the caches before it were consumed on the way."""
        return deque(chunks, maxlen=1)[0]

    def _decoding_tables(self, slots: int) -> model.Tables:
        """Rotary tables of every slot, made by the reference, once."""
        return tuple(self._table(rope, slots) for rope in self.config.ropes)

    def _prompt_tables(self, slots: int, length: int) -> model.Tables:
        """The same for a prompt of `length` tokens, on which some kinds' angles depend."""
        return tuple(
            on_device(rotations(rope, np.arange(slots), length))
            if rope.by_length
            else self._table(rope, slots)
            for rope in self.config.ropes
        )

    def _table(self, rope: Rope, slots: int) -> tuple[jax.Array, jax.Array]:
        """cos and sin of tokens each computed when it was its sequence's last."""
        if (rope, slots) not in self._tables:
            self._tables[rope, slots] = on_device(decoding_rotations(rope, slots))
        return self._tables[rope, slots]

    @on_cpu
    def _run(self, function: Any, *arguments: Any, **static: Any) -> Any:
        """Call a compiled program, compiling and timing it when its shapes are new.

        The weights stay and every layer's cache is alike, so two shapes tell programs apart.
        """
        _, tokens, _, cache, *_ = arguments
        key = (function, tokens.shape, cache.slots, *static.values())
        if key not in self._programs:
            start = time.perf_counter()
            lowered = function.lower(self.config, *arguments, **static)
            self._programs[key] = lowered.compile()
            self.compile_seconds += time.perf_counter() - start
        return self._programs[key](*arguments)
