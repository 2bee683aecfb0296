"""The INT8 grid of reference/grids.py in XLA: true divisions, in spite of the compiler.

A division by a constant, or by one scale for a whole row, becomes a multiplication by the
reciprocal, and one code in five changes on rows full of ties.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from planish.reference.grids import INT8_MAX, SMALLEST_ABSMAX


def divide(x: jax.Array, by: jax.Array | float) -> jax.Array:
    """x / by, truly divided and rounded once.

    XLA turns a division by a constant, or by one value for many, into a multiplication by the
    reciprocal, and sees through an optimization barrier. A divisor that is chosen for each
    entry at run time it must leave alone; NaN stays NaN.
    """
    return x / jnp.where(x == x, by, jnp.float32(jnp.nan))


def int8_scale(absmax: jax.Array) -> jax.Array:
    """scale = max(absmax, 1e-5) / 127."""
    return divide(jnp.maximum(absmax, SMALLEST_ABSMAX), jnp.float32(INT8_MAX))


def int8_codes(x: jax.Array, scale: jax.Array) -> jax.Array:
    """q = clip(rint(x / scale), -127, 127) as int8."""
    return jnp.clip(jnp.round(divide(x, scale)), -INT8_MAX, INT8_MAX).astype(jnp.int8)
