"""The grid of one weight, jitted: reference/quantize/grid.py's rounding to nearest, in floats.

The same values as the reference's to the bit: divisions are true ones (fast/xla/grids.py), and a
scale that its storage type cannot hold stays float32. A scale that overflows even float32 gives
NaN here, where the reference raises an error.

N outputs, K inputs, G groups of g inputs that share a scale.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from planish.fast.xla.grids import divide, int8_codes, int8_scale
from planish.reference.grids import INT4_MAX, SYMMETRIC_ZERO, num_groups
from planish.reference.scheme import Scheme


def round_weight(w: jax.Array, scheme: Scheme, rule: str = "signed") -> jax.Array:
    """w [N, K] rounded to nearest under its scheme, float32 [N, K]; jit it, scheme and rule static.

    rule: of symmetric INT4 scales (grids.INT4_RULES).
    """
    if scheme.bits == 8:
        axis = (0, 1) if scheme.granularity == "per_tensor" else (1,)
        wide = int8_scale(jnp.max(jnp.abs(w), axis=axis, keepdims=True))
        return int8_codes(w, wide).astype(jnp.float32) * wide
    groups = to_groups(w, scheme.group_size)
    scale, zero = group_parameters(groups, rule if scheme.symmetric else "minmax", scheme)
    codes = jnp.clip(jnp.round(divide(groups, scale)) + zero, 0, INT4_MAX)
    return from_groups((codes - zero) * scale, w.shape[1])


def to_groups(x: jax.Array, group_size: int) -> jax.Array:
    """[N, K] -> [N, G, g], the last group padded with zeros."""
    rows, cols = x.shape
    size = cols if group_size == -1 else group_size
    padding = num_groups(cols, group_size) * size - cols
    return jnp.pad(x, ((0, 0), (0, padding))).reshape(rows, -1, size)


def from_groups(groups: jax.Array, cols: int) -> jax.Array:
    """[N, G, g] -> [N, K]."""
    return groups.reshape(groups.shape[0], -1)[:, :cols]


def group_parameters(
    groups: jax.Array, rule: str, scheme: Scheme
) -> tuple[jax.Array, jax.Array | int]:
    """Scale [N, G, 1], rounded to its storage type, and zero point of groups [N, G, g]."""
    low = jnp.float32(0)
    if rule == "signed":
        scale = first_extreme(groups) / jnp.float32(-8)  # a power of two: exact
    elif rule == "minmax":
        low = jnp.minimum(groups.min(axis=2, keepdims=True), 0)
        high = jnp.maximum(groups.max(axis=2, keepdims=True), 0)
        scale = divide(high - low, jnp.float32(INT4_MAX))
    else:
        largest = {"absmax": 7.5, "absmax7": 7}[rule]
        scale = divide(jnp.abs(groups).max(axis=2, keepdims=True), jnp.float32(largest))
    empty = scale == 0
    scale = round_scale(jnp.where(empty, jnp.float32(1), scale), scheme.scale_dtype)
    if rule != "minmax":
        return scale, SYMMETRIC_ZERO
    zero = jnp.clip(jnp.round(divide(-low, scale)), 0, INT4_MAX)
    return scale, jnp.where(empty, SYMMETRIC_ZERO, zero)


def first_extreme(groups: jax.Array) -> jax.Array:
    """The entry of largest magnitude of each group, the first of equals: [N, G, 1].

    XLA's argmax on the CPU is many times slower than these two reductions.
    """
    magnitude = jnp.abs(groups)
    at = jnp.arange(groups.shape[2], dtype=jnp.int32)[None, None, :]
    largest = magnitude == magnitude.max(axis=2, keepdims=True)
    first = jnp.where(largest, at, groups.shape[2]).min(axis=2, keepdims=True)
    return jnp.where(at == first, groups, 0).sum(axis=2, keepdims=True)


def round_scale(scale: jax.Array, dtype: str) -> jax.Array:
    """The scale rounded to its storage type, as float32; as it is where that type loses it."""
    stored = scale.astype(dtype).astype(jnp.float32)
    return jnp.where(jnp.isfinite(stored) & (stored != 0), stored, scale)
