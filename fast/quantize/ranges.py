"""The grids of reference/quantize/grid.py with gradients, from the range of each group.

Rounding has no useful gradient, so it is passed straight through: the gradient of rint(x) is that
of x (Bengio et al. 2013, arXiv 1308.3432). A code that is clipped has none.

N outputs, K inputs, G groups of g inputs; for INT8, G = 1, and N = 1 if the tensor has one scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from planish.fast.quantize.grid import from_groups, round_scale, to_groups
from planish.fast.xla.grids import divide, int8_scale
from planish.reference.grids import INT4_MAX, INT8_MAX, SYMMETRIC_ZERO
from planish.reference.scheme import Scheme


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


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def store_through(scale: jax.Array, dtype: str) -> jax.Array:
    """The scale rounded to its storage type, with the gradient of the scale, in float32."""
    return round_scale(scale, dtype)


@store_through.defjvp
def _(
    dtype: str, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return round_scale(primals[0], dtype), tangents[0]


def to_scale_groups(w: jax.Array, scheme: Scheme) -> jax.Array:
    """[N, K] -> [N, G, g]: the weights that share a scale in the last axis; padded with zeros."""
    if scheme.granularity == "per_tensor":
        return w.reshape(1, 1, -1)
    return to_groups(w, scheme.group_size)


def from_scale_groups(groups: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse: [N, G, g] -> [N, K]."""
    if groups.shape[0] != shape[0]:
        return groups.reshape(shape)
    return from_groups(groups, shape[1])


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
    scale = store_through(scale, scheme.scale_dtype)
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
