"""Attention by XLA over a batch and a cache of slots, as reference/model/layers.py defines it.

B sequences, T tokens, S cache slots, H query heads, K key-value heads, Hd head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from planish.fast.model.backend import QKV, AttentionConfig, Positions
from planish.fast.model.layers import map_chunks, soft_cap
from planish.fast.xla.cache import Slots, append, read
from planish.reference.model.config import Alibi
from planish.reference.model.rope import Rope

SCORES = 2**24  # attention scores computed at a time (64 MiB), but at least those of one token


def cached_attention(
    qkv: QKV, positions: Positions, past: Slots, config: AttentionConfig
) -> tuple[jax.Array, Slots]:
    """Rotary positions, cache write, softmax(q kt / divisor) v -> [B, T, H * Hd], and the slots.

    q [B, T, H * Hd], k and v [B, T, K * Hd].
    """
    q, k, v = (x.reshape(*x.shape[:2], -1, config.head_dim) for x in qkv)
    if config.rope is not None and config.table is not None:
        cos, sin = (angles[positions.index] for angles in positions.tables[config.table])
        q, k = rotate(q, cos, sin, config.rope), rotate(k, cos, sin, config.rope)
    past = append(past, k, v, positions.index)
    mask = CausalMask(positions.index, config.window)
    return attention(q, *read(past), mask, config.divisor, config.alibi, config.cap), past


@dataclass(frozen=True)
class CausalMask:
    """causal_mask of tokens at positions [B, T], not yet computed: see `attention`."""

    positions: jax.Array
    window: int | None = None


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array, rope: Rope) -> jax.Array:
    """Rotate the pairs of the first `dim` entries of x [B, T, heads, Hd] by cos and sin [B, T, :].

    Source: RoPE, arXiv 2104.09864.
    """
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]  # [B, T, 1, dim / 2]
    rotated, rest = x[..., : rope.dim], x[..., rope.dim :]
    if rope.interleaved:
        a, b = rotated[..., 0::2], rotated[..., 1::2]  # [B, T, heads, dim / 2] each
        rotated = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
        return jnp.concatenate([rotated.reshape(*x.shape[:-1], rope.dim), rest], axis=-1)
    a, b = jnp.split(rotated, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


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


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: CausalMask,
    divisor: float,
    alibi: Alibi | None = None,
    cap: float | None = None,
) -> jax.Array:
    """softmax(q kt / divisor) v for q [B, T, H, Hd], k and v [B, K, S, Hd] -> [B, T, H * Hd].

    Tokens are taken so many at a time that they have at most SCORES scores: memory does not grow
    with the square of the context.
    """
    batch, _, heads, _ = q.shape

    def attend_some(q: jax.Array, positions: jax.Array) -> jax.Array:
        some = CausalMask(positions, mask.window)
        weigh = partial(score_weights, mask=some, divisor=divisor, alibi=alibi, cap=cap)
        return attend_at_once(q, k, v, weigh)

    count = max(1, SCORES // (batch * heads * k.shape[2]))
    return map_chunks(attend_some, count, q, mask.positions)


def attend_at_once(
    q: jax.Array, k: jax.Array, v: jax.Array, weigh: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """weigh(q kt) v of all tokens; query head h reads key-value head h // (H / K)."""
    batch, tokens, heads, head_dim = q.shape
    kv_heads, slots = k.shape[1:3]
    shared = heads // kv_heads
    q = q.reshape(batch, tokens, kv_heads, shared, head_dim)
    q = q.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, shared * tokens, head_dim)
    scores = jnp.einsum("bkqd,bksd->bkqs", q, k).reshape(batch, heads, tokens, slots)
    weights = weigh(scores).reshape(batch, kv_heads, shared * tokens, slots)
    context = jnp.einsum("bkqs,bksd->bkqd", weights, v)
    context = context.reshape(batch, heads, tokens, head_dim)
    return context.transpose(0, 2, 1, 3).reshape(batch, tokens, heads * head_dim)


def score_weights(
    scores: jax.Array, mask: CausalMask, divisor: float, alibi: Alibi | None, cap: float | None
) -> jax.Array:
    """softmax over the slots that each token may read: scores [B, H, T, S], not yet divided."""
    scores = soft_cap(scale_and_bias(scores, divisor, alibi, mask.positions), cap)
    visible = causal_mask(mask.positions, scores.shape[-1], mask.window)[:, None]  # [B, 1, T, S]
    return jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)


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
