"""The rows and slots of the KV cache: how many, made when, handed on, put together and thinned out.

A cache has a power of two of slots, or a multiple of 512, and a batch that has thinned out a power
of two of rows, so that few programs are compiled.
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


def slot_count(count: int) -> int:
    """Slots of a cache for `count` tokens: a power of two up to 512, then a multiple of 512."""
    if count > PREFILL_CHUNK:
        return -(-count // PREFILL_CHUNK) * PREFILL_CHUNK
    return max(FEWEST_SLOTS, 1 << (count - 1).bit_length())


def empty_cache(config: ModelConfig, batch: int, slots: int, backend: Backend) -> KVCache:
    """A cache of zeros; each array its own buffer, since each is donated."""
    layers = (backend.empty_layer(config, batch, slots) for _ in range(config.num_layers))
    return KVCache(tuple(layers))


def cache_bytes(config: ModelConfig, batch: int, slots: int, backend: Backend) -> int:
    """Bytes of empty_cache's arrays, none of which is made."""
    layer: Any = jax.eval_shape(lambda: backend.empty_layer(config, batch, slots))
    arrays = jax.tree.leaves(layer)
    return config.num_layers * sum(array.size * array.dtype.itemsize for array in arrays)


class CachePool:
    """Caches for a model's generations; the last one that was given back is used again."""

    def __init__(self, config: ModelConfig, backend: Backend):
        self.config, self.backend = config, backend
        self._spare: KVCache | None = None

    def take(self, batch: int, slots: int) -> KVCache:
        """Slots to be written, `slots` or more; raises MemoryError where there is no room."""
        slots = slot_count(slots)
        spare, self._spare = self._spare, None
        if spare is not None and spare.shape == (batch, slots):
            return spare
        reserve(cache_bytes(self.config, batch, slots, self.backend))
        return empty_cache(self.config, batch, slots, self.backend)

    def give_back(self, cache: KVCache) -> None:
        """Keep a cache for the next generation, where old slots need not be cleared."""
        first = cache.layers[0]
        if not first.masks_after and not first.keys.is_deleted():
            self._spare = cache


def insert(cache: KVCache, single: KVCache, row: jax.Array) -> KVCache:
    """Put the cache of one prompt, a batch of 1, into a row of a batch's cache."""

    def put(whole: jax.Array, part: jax.Array) -> jax.Array:
        zero = jnp.zeros((), row.dtype)
        return lax.dynamic_update_slice(whole, part, (row, *(zero,) * (whole.ndim - 1)))

    return jax.tree.map(put, cache, single)


@jax.jit
def take_rows(layer: LayerCache, rows: jax.Array) -> LayerCache:
    """Some rows of one layer's slots."""
    return jax.tree.map(lambda array: jnp.take(array, rows, axis=0), layer)


def rows_to_keep(ended: Sequence[bool], remaining: int) -> list[int] | None:
    """The rows of a smaller batch, or None where it would not pay to make one.

    It pays, compiling included, when half of the rows have ended and many tokens may still come.
    The batch has a power of two of rows then; ended ones fill it up.
    """
    active = [row for row, over in enumerate(ended) if not over]
    size = 1 << (len(active) - 1).bit_length() if active else 0
    if not active or 2 * size > len(ended) or remaining < WORTH_TOKENS:
        return None
    filling = [row for row, over in enumerate(ended) if over][: size - len(active)]
    return sorted([*active, *filling])


WORTH_TOKENS = 32  # for which a program may have to be compiled
