"""What is done to attention scores before the softmax: mask, biases and caps.

B sequences, T tokens, S cache slots, H query heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from planish.fast.model.layers import soft_cap
from planish.reference.model.config import Alibi


@dataclass(frozen=True)
class CausalMask:
    """causal_mask of tokens at positions [B, T], not yet computed: see `attention`."""

    positions: jax.Array
    window: int | None = None


@dataclass(frozen=True, kw_only=True)
class ScoreRule:
    """How products of queries and keys become scores."""

    mask: CausalMask
    divisor: float
    alibi: Alibi | None = None
    cap: float | None = None


def mask_scores(scores: jax.Array, rule: ScoreRule) -> jax.Array:
    """Products [B, H, T, S], divided, biased and capped; -inf where a token may not read."""
    positions, mask = rule.mask.positions, rule.mask
    scores = soft_cap(scale_and_bias(scores, rule.divisor, rule.alibi, positions), rule.cap)
    visible = causal_mask(positions, scores.shape[-1], mask.window)[:, None]  # [B, 1, T, S]
    return jnp.where(visible, scores, -jnp.inf)


def causal_mask(positions: jax.Array, slots: int, window: int | None = None) -> jax.Array:
    """Which slots a token at each position [B, T] may read -> [B, T, S]."""
    distance = positions[:, :, None] - jnp.arange(slots, dtype=positions.dtype)[None, None, :]
    return (distance >= 0) & (distance < (window or slots))


def alibi_biases(alibi: Alibi, positions: jax.Array, slots: int) -> jax.Array:
    """slope * (slot - position) for each head: [B, H, T, S], or [1, H, 1, S] rounded to bfloat16.

    Source: ALiBi, arXiv 2108.12409. reduce_precision rounds as bfloat16 does; XLA may drop a
    conversion to bfloat16 and back.
    """
    slopes = jnp.asarray(alibi.slopes, jnp.float32)[None, :, None, None]
    slot = jnp.arange(slots, dtype=jnp.float32)[None, None, None, :]
    if alibi.bfloat16:
        return as_bfloat16(as_bfloat16(slopes) * as_bfloat16(slot))
    return slopes * (slot - positions.astype(jnp.float32)[:, None, :, None])


def as_bfloat16(x: jax.Array) -> jax.Array:
    """float32 x, rounded to what a bfloat16 holds."""
    return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def scale_and_bias(
    scores: jax.Array, divisor: float, alibi: Alibi | None, positions: jax.Array
) -> jax.Array:
    """Scores [B, H, T, S] divided, and biased before or after."""
    if alibi is None:
        return scores / jnp.float32(divisor)
    biases = alibi_biases(alibi, positions, scores.shape[-1])
    if alibi.divided:
        return (scores + biases) / jnp.float32(divisor)
    return scores / jnp.float32(divisor) + biases
