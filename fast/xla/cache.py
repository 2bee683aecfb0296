"""Slots for XLA: keys and values [B, K, S, Hd], float32 or int8.

Attention reads all slots and masks those that a token may not see, so slots start as zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import lax

from planish.fast.model.cache import LayerCache, empty_scales, storage_type
from planish.fast.xla.grids import int8_codes, int8_scale
from planish.reference.model.attention import AttentionScales
from planish.reference.model.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Slots(LayerCache):
    """keys and values [B, K, S, Hd]."""


def empty_layer(config: ModelConfig, batch: int, slots: int) -> Slots:
    """Zeros; each array has a separate buffer, since each is donated."""
    shape, kind = (batch, config.num_kv_heads, slots, config.head_dim), storage_type(config)
    keys, values = (jnp.zeros(shape, kind) for _ in range(2))
    return Slots(keys=keys, values=values, **empty_scales(config, batch, slots))


def append(
    past: Slots,
    k: jax.Array,
    v: jax.Array,
    positions: jax.Array,
    scales: AttentionScales | None = None,
) -> Slots:
    """Write new k and v [B, T, K, Hd] at slots positions[b, 0].. of each row b, modulo S in a ring.

    scales: of a static cache.
    """
    new: tuple[jax.Array, ...] = (k, v)
    if scales is not None:
        key_scale, value_scale = static_scales(scales)
        new = int8_codes(k, key_scale), int8_codes(v, value_scale)
    elif past.key_scale is not None:
        found = tuple(int8_scale(jnp.max(jnp.abs(x), axis=-1, keepdims=True)) for x in new)
        codes = tuple(int8_codes(x, scale) for x, scale in zip(new, found, strict=True))
        new = (*codes, *(scale[..., 0] for scale in found))
    put = write if past.ring is None else write_ring
    written = (put(slots, x, positions) for slots, x in zip(past.arrays, new, strict=True))
    return past.replace_arrays(written)


def static_scales(scales: AttentionScales) -> tuple[jax.Array, jax.Array]:
    """The calibrated scales of keys and values, [1, 1, 1, 1] each."""
    key, value = (jnp.asarray(scale).reshape(1, 1, 1, 1) for scale in (scales.k, scales.v))
    return key, value


def write(slots: jax.Array, new: jax.Array, positions: jax.Array) -> jax.Array:
    """Write new [B, T, K, ...] into slots [B, K, S, ...]."""
    new = jnp.swapaxes(new, 1, 2)  # [B, K, T, ...]
    zero = jnp.zeros((), positions.dtype)
    rest = (zero,) * (new.ndim - 3)
    for row in range(new.shape[0]):
        start = (zero + row, zero, positions[row, 0], *rest)
        slots = lax.dynamic_update_slice(slots, new[row : row + 1], start)
    return slots


def write_ring(slots: jax.Array, new: jax.Array, positions: jax.Array) -> jax.Array:
    """The same where position p is at slot p % S."""
    index = positions[:, :1] + jnp.arange(new.shape[1], dtype=positions.dtype)[None]  # [B, T]
    for row in range(new.shape[0]):
        slots = slots.at[row, :, index[row] % slots.shape[2]].set(new[row])
    return slots


def unroll(past: Slots) -> Slots:
    """The slots of a ring as those of all positions, each at its own: a copy of one layer.

    Positions that the ring no longer has get the contents of others; no token of the window reads
    them. So XLA adds as many terms in the same order as over a long cache, and rounds as there.
    """
    if past.ring is None:
        return past
    index = jnp.arange(past.ring)
    arrays = (jnp.take(array, index, axis=2, mode="wrap") for array in past.arrays)
    return replace(past.replace_arrays(arrays), ring=None)


def read(past: Slots, scales: AttentionScales | None = None) -> tuple[jax.Array, jax.Array]:
    """Keys and values as floats [B, K, S, Hd]; scales: of a static cache."""
    if scales is not None:
        key_scale, value_scale = static_scales(scales)
        keys = past.keys.astype(jnp.float32) * key_scale
        return keys, past.values.astype(jnp.float32) * value_scale
    if past.key_scale is None or past.value_scale is None:
        return past.keys, past.values
    keys = past.keys.astype(jnp.float32) * past.key_scale[..., None]
    return keys, past.values.astype(jnp.float32) * past.value_scale[..., None]
