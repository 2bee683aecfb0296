"""The KV cache: a fixed number of slots, donated from step to step and updated in place.

            slot   0     1     2     3    ...  S-1
    a row of B   | k0  | k1  | k2  |  -  |  -  |  -  |      position 2 was just written

A slot is valid for a token if it is not behind the token's position, so nothing has to be
cleared. dynamic_update_slice clamps a start that is out of range and would overwrite the last
slots silently: lengths are checked on the host, before anything is computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from reference.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys (rotated) and values per layer, float32 [B, K, S, Hd] each."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]

    @property
    def slots(self) -> int:
        return self.keys[0].shape[2]


def empty_cache(config: ModelConfig, batch: int, slots: int) -> KVCache:
    """A cache of zeros; each array its own buffer, since each is donated."""
    shape = (batch, config.num_kv_heads, slots, config.head_dim)
    keys = tuple(jnp.zeros(shape, jnp.float32) for _ in range(config.num_layers))
    values = tuple(jnp.zeros(shape, jnp.float32) for _ in range(config.num_layers))
    return KVCache(keys, values)


def append(slots: jax.Array, new: jax.Array, positions: jax.Array) -> jax.Array:
    """Write new [B, T, K, Hd] at slots positions[b, 0].. of each row b."""
    new = new.transpose(0, 2, 1, 3)  # [B, K, T, Hd]
    zero = jnp.zeros((), positions.dtype)
    for row in range(new.shape[0]):
        start = (zero + row, zero, positions[row, 0], zero)
        slots = lax.dynamic_update_slice(slots, new[row : row + 1], start)
    return slots


def insert(cache: KVCache, single: KVCache, row: jax.Array) -> KVCache:
    """Put the cache of one prompt, [1, K, S, Hd], into a row of a batch's cache."""

    def put(whole: jax.Array, part: jax.Array) -> jax.Array:
        zero = jnp.zeros((), row.dtype)
        return lax.dynamic_update_slice(whole, part, (row, zero, zero, zero))

    return jax.tree.map(put, cache, single)
