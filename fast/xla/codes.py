"""INT8 attention by XLA over a cache of codes, as reference/model/attention.py defines it (SPEC 3).

Both products are integer dots, so that they are exact; XLA runs them on VNNI or AMX where it can.

B sequences, T tokens, S cache slots, H query heads, K key-value heads, Hd head width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from planish.fast.xla.cache import Slots, static_scales
from planish.fast.xla.grids import divide, int8_codes, int8_scale
from planish.fast.xla.scores import ScoreRule, mask_scores
from planish.reference.grids import INT8_MAX
from planish.reference.model.attention import STATIC_P_SCALE, AttentionScales


def attend_codes(
    q: jax.Array, past: Slots, rule: ScoreRule, scales: AttentionScales | None = None
) -> jax.Array:
    """softmax(q kt / divisor) v on codes: q [B, T, H, Hd] over slots [B, K, S, Hd] -> [B, T, H*Hd].

    All tokens at once: xla/attention.py calls it for a few at a time.
    """
    q8, q_scale = quantize_queries(q, scales)  # [B, T, H, Hd] and [B, T, H or 1, 1]
    k_scale, v_scale = slot_scales(past, scales)  # [B, K, 1, S] or [1, 1, 1, 1]
    grouped = group_heads(q8, past.keys.shape[1])  # [B, K, H/K * T, Hd]
    sums = sum_products(grouped, past.keys, 3).astype(jnp.float32)  # [B, K, H/K * T, S]
    e = exponentiate_scores((sums * group_scale(q_scale, grouped)) * k_scale, q.shape, rule)
    total = jnp.sum(e, axis=-1, keepdims=True)
    if scales is None:
        weights = e * v_scale
        p_scale = divide(jnp.max(weights, axis=-1, keepdims=True), jnp.float32(INT8_MAX))
        p8 = int8_codes(weights, p_scale)
        context = sum_products(p8, past.values, 2).astype(jnp.float32) * p_scale
    else:
        p8 = int8_codes(e, jnp.asarray(STATIC_P_SCALE))
        context = sum_products(p8, past.values, 2).astype(jnp.float32) * STATIC_P_SCALE * v_scale
    return join_heads(context / total, q.shape)


def quantize_queries(q: jax.Array, scales: AttentionScales | None) -> tuple[jax.Array, jax.Array]:
    """Codes int8 [B, T, H, Hd]; scale [B, T, H, 1], or the calibrated one [1, 1, 1, 1]."""
    if scales is None:
        scale = int8_scale(jnp.max(jnp.abs(q), axis=-1, keepdims=True))
    else:
        scale = jnp.asarray(scales.q).reshape(1, 1, 1, 1)
    return int8_codes(q, scale), scale


def slot_scales(past: Slots, scales: AttentionScales | None) -> tuple[jax.Array, jax.Array]:
    """The scales of keys and values [B, K, 1, S], or the calibrated ones [1, 1, 1, 1]."""
    if past.key_scale is not None and past.value_scale is not None:
        return past.key_scale[:, :, None, :], past.value_scale[:, :, None, :]
    if scales is None:
        raise TypeError("INT8 attention needs an INT8 cache, with its scales")
    return static_scales(scales)


def group_heads(x: jax.Array, kv_heads: int) -> jax.Array:
    """[B, T, H, ...] -> [B, K, H/K * T, ...]: the query heads of each key-value head."""
    batch, tokens, heads, width = x.shape
    x = x.reshape(batch, tokens, kv_heads, heads // kv_heads, width).transpose(0, 2, 3, 1, 4)
    return x.reshape(batch, kv_heads, heads // kv_heads * tokens, width)


def group_scale(scale: jax.Array, grouped: jax.Array) -> jax.Array:
    """The scales of the queries in the order of `grouped` [B, K, H/K * T, Hd]."""
    return scale if scale.shape[1:] == (1, 1, 1) else group_heads(scale, grouped.shape[1])


def join_heads(context: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[B, K, H/K * T, Hd] -> [B, T, H * Hd], for queries of this shape [B, T, H, Hd]."""
    batch, tokens, heads, width = shape
    context = context.reshape(batch, heads, tokens, width).transpose(0, 2, 1, 3)
    return context.reshape(batch, tokens, heads * width)


def sum_products(a: jax.Array, slots: jax.Array, axis: int) -> jax.Array:
    """a [B, K, R, N] times slots [B, K, S, Hd], summed over `axis` of the slots: int32, exact."""
    dimensions = ((3,), (axis,)), ((0, 1), (0, 1))
    return lax.dot_general(a, slots, dimensions, preferred_element_type=jnp.int32)


def exponentiate_scores(products: jax.Array, shape: tuple[int, ...], rule: ScoreRule) -> jax.Array:
    """exp(score - max) of scaled products [B, K, H/K * T, S], 0 where masked; q has this shape."""
    batch, tokens, heads, _ = shape
    scores = mask_scores(products.reshape(batch, heads, tokens, -1), rule)
    e = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return e.reshape(products.shape)
