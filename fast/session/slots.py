"""The rows and slots of the KV cache: their number, their reuse, inserting and selecting rows.

The number of slots is a power of two or a multiple of 512, and the number of rows of a batch that
has shrunk is a power of two, so that few programs are compiled. Layers with a sliding window have
fewer slots, in a ring (fast/model/cache.py). Bytes for 16,384 tokens, float32:

    layers with a window                one slot for each token    rings
    Mistral 7B: 32 of 32, of 4,096      4,295 MB                   1,208 MB
    Gemma 3 1B: 22 of 26, of 512          872 MB                     180 MB
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from planish.fast.model.backend import Backend
from planish.fast.model.cache import KVCache, LayerCache
from planish.fast.placement import zeros
from planish.reference.model.config import ModelConfig
from planish.reference.model.transformer import PREFILL_CHUNK
from planish.reference.text.generate import reserve

FEWEST_SLOTS = 16
RING_STEP = 128  # slots that a step of the kernels' attention reads, side by side
WORTH_TOKENS = 32  # so many tokens to come are worth compiling a program for a smaller batch


Place = Callable[[KVCache], KVCache]


def slot_count(count: int) -> int:
    """Slots of a cache for `count` tokens: a power of two up to 512, then a multiple of 512."""
    if count > PREFILL_CHUNK:
        return -(-count // PREFILL_CHUNK) * PREFILL_CHUNK
    return max(FEWEST_SLOTS, 1 << (count - 1).bit_length())


def ring_slots(window: int | None, slots: int, ahead: int = PREFILL_CHUNK) -> int:
    """Slots of a layer for `slots` positions: a ring, if its window and the tokens ahead are fewer.

    ahead: how many tokens are written before the first of them is read, or written anew.
    """
    ring = slots if window is None else -(-(window + ahead) // RING_STEP) * RING_STEP
    return min(ring, slots)


def empty_cache(
    config: ModelConfig, batch: int, slots: int, backend: Backend, ahead: int = PREFILL_CHUNK
) -> KVCache:
    """A cache of zeros; each array has a separate buffer, since each is donated."""
    form = cache_form(config, batch, slots, backend, ahead)
    return KVCache(tuple(zeros(layer) for layer in form.layers))


def cache_bytes(
    config: ModelConfig, batch: int, slots: int, backend: Backend, ahead: int = PREFILL_CHUNK
) -> int:
    """The size of what empty_cache would allocate."""
    form: Any = cache_form(config, batch, slots, backend, ahead)
    return sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(form))


def cache_form(
    config: ModelConfig, batch: int, slots: int, backend: Backend, ahead: int
) -> KVCache:
    """The shapes and types of empty_cache."""
    counts = layer_slots(config, slots, ahead)
    forms = {}
    for count in set(counts):
        form = jax.eval_shape(partial(backend.empty_layer, config, batch, count))
        forms[count] = form if count == slots else replace(form, ring=slots)
    return KVCache(tuple(forms[count] for count in counts))


def layer_slots(config: ModelConfig, slots: int, ahead: int) -> list[int]:
    """Slots of each layer for `slots` positions."""
    return [ring_slots(kind.window, slots, ahead) for kind in config.layers]


class CachePool:
    """Caches for a model's generations; the last one that was given back is reused."""

    def __init__(self, config: ModelConfig, backend: Backend, place: Place = lambda made: made):
        """place: puts a new cache on the devices that use it."""
        self.config, self.backend, self.place = config, backend, place
        self._cached: KVCache | None = None

    def take(self, batch: int, slots: int, ahead: int = 0) -> KVCache:
        """A cache of at least `slots` positions; raises MemoryError if memory does not suffice.

        ahead: as for ring_slots, at least a chunk.
        """
        form = batch, slot_count(slots), max(ahead, PREFILL_CHUNK)
        cached, self._cached = self._cached, None
        if cached is not None and self._has_form(cached, *form):
            return cached
        batch, slots, ahead = form
        reserve(cache_bytes(self.config, batch, slots, self.backend, ahead))
        return self.place(empty_cache(self.config, batch, slots, self.backend, ahead))

    def _has_form(self, cache: KVCache, batch: int, slots: int, ahead: int) -> bool:
        """Whether a cache is what empty_cache would make, but for its contents."""
        found = [layer.shape[1] for layer in cache.layers]
        counts = layer_slots(self.config, slots, ahead)
        return cache.shape == (batch, slots) and found == counts

    def give_back(self, cache: KVCache) -> None:
        """Keep a cache for the next generation, if its slots need not be cleared."""
        first = cache.layers[0]
        if not first.masks_after and not first.keys.is_deleted():
            self._cached = cache


def insert(cache: KVCache, single: KVCache, row: jax.Array) -> KVCache:
    """Write the cache of one prompt (a batch of 1) to a row of a batch's cache."""

    def put(whole: jax.Array, part: jax.Array) -> jax.Array:
        zero = jnp.zeros((), row.dtype)
        return lax.dynamic_update_slice(whole, part, (row, *(zero,) * (whole.ndim - 1)))

    return jax.tree.map(put, cache, single)


@jax.jit
def take_rows(layer: LayerCache, rows: jax.Array) -> LayerCache:
    """Select some rows of one layer's slots."""
    return jax.tree.map(lambda array: jnp.take(array, rows, axis=0), layer)


def rows_to_keep(ended: Sequence[bool], remaining: int) -> list[int] | None:
    """The rows of a smaller batch, or None if a smaller batch would not pay.

    It pays, compiling included, when half of the rows have ended and many tokens may still come.
    The smaller batch has a power of two of rows, filled up with rows that have ended.
    """
    active = [row for row, has_ended in enumerate(ended) if not has_ended]
    size = 1 << (len(active) - 1).bit_length() if active else 0
    if not active or 2 * size > len(ended) or remaining < WORTH_TOKENS:
        return None
    filling = [row for row, has_ended in enumerate(ended) if has_ended][: size - len(active)]
    return sorted([*active, *filling])
