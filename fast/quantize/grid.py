"""The grids of reference/quantize/grid.py in XLA, with gradients, from the range of each group.

Rounding has no useful gradient, so it is passed straight through: the gradient of rint(x) is that
of x (Bengio et al. 2013, arXiv 1308.3432). A code that is clipped has none.

N outputs, K inputs, G groups of g inputs; for INT8, G = 1, and N = 1 if the tensor has one scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from planish.fast.xla.grids import divide, int8_scale
from planish.fast.xla.linear import split_groups
from planish.reference.grids import INT4_MAX, INT8_MAX, SYMMETRIC_ZERO, num_groups
from planish.reference.scheme import Scheme

SMALLEST_FLOAT16, FLOAT16_STEP = 2.0**-14, 2.0**-24  # the least normal one; between subnormal ones


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Ranges:
    """min(w, 0) and max(w, 0) of each group [N, G], and whether the minimum comes first."""

    low: jax.Array
    high: jax.Array
    low_first: jax.Array


@jax.custom_jvp
def round_through(x: jax.Array) -> jax.Array:
    """rint(x), with the gradient of x."""
    return jnp.round(x)


@round_through.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return jnp.round(primals[0]), tangents[0]


@jax.custom_jvp
def as_float16(x: jax.Array) -> jax.Array:
    """x rounded to what a float16 holds, or x itself where that is 0 or infinite; as store_scale.

    reduce_precision loses subnormal numbers, and XLA may drop a conversion to float16 and back.
    """
    normal = lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10)
    subnormal = jnp.round(x * jnp.float32(1 / FLOAT16_STEP)) * jnp.float32(FLOAT16_STEP)
    stored = jnp.where(jnp.abs(x) < jnp.float32(SMALLEST_FLOAT16), subnormal, normal)
    return jnp.where((stored == 0) | ~jnp.isfinite(stored), x, stored)


@as_float16.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return as_float16(primals[0]), tangents[0]


def to_scale_groups(w: jax.Array, scheme: Scheme) -> jax.Array:
    """[N, K] -> [N, G, g]: the weights that share a scale in the last axis; padded with zeros."""
    if scheme.granularity == "per_tensor":
        return w.reshape(1, 1, -1)
    size = w.shape[1] if scheme.group_size == -1 else scheme.group_size
    return split_groups(w, num_groups(w.shape[1], size), size)


def from_scale_groups(groups: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse: [N, G, g] -> [N, K]."""
    if groups.shape[0] != shape[0]:
        return groups.reshape(shape)
    return groups.reshape(shape[0], -1)[:, : shape[1]]


def group_ranges(w: jax.Array, scheme: Scheme) -> Ranges:
    """The ranges of w [N, K]."""
    groups = to_scale_groups(w, scheme)
    return Ranges(
        low=jnp.minimum(groups.min(axis=2), jnp.float32(0)),
        high=jnp.maximum(groups.max(axis=2), jnp.float32(0)),
        low_first=groups.argmin(axis=2) < groups.argmax(axis=2),
    )


def range_parameters(
    ranges: Ranges, scheme: Scheme, rule: str
) -> tuple[jax.Array, jax.Array | None]:
    """grid_parameters from the ranges: scale and zero point, both float32 [N, G], or None."""
    low, high = ranges.low, ranges.high
    if scheme.bits == 8:
        return int8_scale(jnp.maximum(high, -low)), None
    rule = rule if scheme.symmetric else "minmax"
    if rule == "signed":
        low_wins = (-low > high) | ((-low == high) & ranges.low_first)
        scale = jnp.where(low_wins, low, high) * jnp.float32(-1 / 8)
    elif rule == "minmax":
        scale = divide(high - low, jnp.float32(INT4_MAX))
    else:
        steps = {"absmax": 7.5, "absmax7": 7}[rule]
        scale = divide(jnp.maximum(high, -low), jnp.float32(steps))
    empty = scale == 0
    scale = jnp.where(empty, jnp.float32(1), scale)
    scale = as_float16(scale) if scheme.scale_dtype == "float16" else scale
    middle = jnp.full_like(scale, SYMMETRIC_ZERO)
    if rule != "minmax":
        return scale, middle
    zero = jnp.clip(round_through(divide(-low, scale)), 0, INT4_MAX)
    return scale, jnp.where(empty, middle, zero)


def fake_quantize(
    w: jax.Array, scale: jax.Array, zero: jax.Array | None, scheme: Scheme, v: Any = None
) -> jax.Array:
    """What the codes of w [N, K] stand for; v [N, K] is added to w / scale before it is rounded."""
    wide = scale[:, :, None]
    x = divide(to_scale_groups(w, scheme), wide)
    x = round_through(x if v is None else x + to_scale_groups(v, scheme))
    if zero is None:
        values = jnp.clip(x, -INT8_MAX, INT8_MAX) * wide
    else:
        values = (jnp.clip(x + zero[:, :, None], 0, INT4_MAX) - zero[:, :, None]) * wide
    return from_scale_groups(values, w.shape)
