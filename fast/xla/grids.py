"""The INT8 grid of reference/grids.py in XLA, with true divisions.

XLA turns a division by a constant, or by one scale for a whole row, into a multiplication by the
reciprocal, which changes one code in five on rows full of ties.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from planish.reference.grids import INT8_MAX, SMALLEST_ABSMAX


def divide(x: jax.Array, by: jax.Array | float) -> jax.Array:
    """x / by, a true division, rounded once.

    An optimization barrier does not keep XLA from using the reciprocal, but a divisor that is
    selected for each entry at run time does. NaN stays NaN.
    """
    return x / jnp.where(x == x, by, jnp.float32(jnp.nan))


def int8_scale(absmax: jax.Array) -> jax.Array:
    """scale = max(absmax, 1e-5) / 127."""
    return divide(jnp.maximum(absmax, SMALLEST_ABSMAX), jnp.float32(INT8_MAX))


def int8_codes(x: jax.Array, scale: jax.Array) -> jax.Array:
    """q = clip(rint(x / scale), -127, 127) as int8."""
    return jnp.clip(jnp.round(divide(x, scale)), -INT8_MAX, INT8_MAX).astype(jnp.int8)


def int8_codes_around(x: jax.Array, scale: jax.Array, zero_point: jax.Array) -> jax.Array:
    """q = clip(rint(x / scale) + zero_point, -128, 127) as int8."""
    codes = jnp.round(divide(x, scale)) + zero_point.astype(jnp.float32)
    return jnp.clip(codes, -INT8_MAX - 1, INT8_MAX).astype(jnp.int8)
