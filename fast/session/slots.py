"""The rows and slots of the KV cache: their number, their reuse, inserting and selecting rows.

The number of slots is a power of two or a multiple of 512, and the number of rows of a batch that
has shrunk is a power of two, so that few programs are compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from planish.fast.model.backend import Backend
from planish.fast.model.cache import KVCache, LayerCache
from planish.reference.model.config import ModelConfig
from planish.reference.model.transformer import PREFILL_CHUNK
from planish.reference.text.generate import reserve

FEWEST_SLOTS = 16
WORTH_TOKENS = 32  # so many tokens to come are worth compiling a program for a smaller batch


def slot_count(count: int) -> int:
    """Slots of a cache for `count` tokens: a power of two up to 512, then a multiple of 512."""
    if count > PREFILL_CHUNK:
        return -(-count // PREFILL_CHUNK) * PREFILL_CHUNK
    return max(FEWEST_SLOTS, 1 << (count - 1).bit_length())


def empty_cache(config: ModelConfig, batch: int, slots: int, backend: Backend) -> KVCache:
    """A cache of zeros; each array has a separate buffer, since each is donated."""
    layers = (backend.empty_layer(config, batch, slots) for _ in range(config.num_layers))
    return KVCache(tuple(layers))


def cache_bytes(config: ModelConfig, batch: int, slots: int, backend: Backend) -> int:
    """The size of what empty_cache would allocate."""
    layer: Any = jax.eval_shape(lambda: backend.empty_layer(config, batch, slots))
    arrays = jax.tree.leaves(layer)
    return config.num_layers * sum(array.size * array.dtype.itemsize for array in arrays)


class CachePool:
    """Caches for a model's generations; the last one that was given back is reused."""

    def __init__(self, config: ModelConfig, backend: Backend):
        self.config, self.backend = config, backend
        self._cached: KVCache | None = None

    def take(self, batch: int, slots: int) -> KVCache:
        """A cache of at least `slots` slots; raises MemoryError if memory does not suffice."""
        slots = slot_count(slots)
        cached, self._cached = self._cached, None
        if cached is not None and cached.shape == (batch, slots):
            return cached
        reserve(cache_bytes(self.config, batch, slots, self.backend))
        return empty_cache(self.config, batch, slots, self.backend)

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
