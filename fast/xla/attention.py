"""Attention by XLA over a batch and a cache of slots, as reference/model/layers.py defines it.

B sequences, T tokens, S cache slots, H query heads, K key-value heads, Hd head width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from planish.fast.model.backend import QKV, AttentionConfig, Positions
from planish.fast.model.layers import map_chunks
from planish.fast.xla.cache import Slots, append, read, unroll
from planish.fast.xla.codes import attend_codes
from planish.fast.xla.scores import CausalMask, ScoreRule, mask_scores
from planish.reference.model.attention import AttentionScales
from planish.reference.model.config import Alibi
from planish.reference.model.rope import Rope

SCORES = 2**24  # attention scores computed at a time (64 MiB), but at least those of one token


def cached_attention(
    qkv: QKV,
    positions: Positions,
    past: Slots,
    config: AttentionConfig,
    scales: AttentionScales | None = None,
) -> tuple[jax.Array, Slots]:
    """Rotary positions, cache write, softmax(q kt / divisor) v -> [B, T, H * Hd], and the slots.

    q [B, T, H * Hd], k and v [B, T, K * Hd]; scales: of a static INT8 cache.
    """
    q, k, v = rotate_heads(qkv, positions, config)
    past = append(past, k, v, positions.index, scales)
    mask, seen = CausalMask(positions.index, config.window), unroll(past)
    if config.int8:
        return attention_on_codes(q, seen, mask, config, scales), past
    keys, values = read(seen, scales)
    return attention(q, keys, values, mask, config.divisor, config.alibi, config.cap), past


def rotate_heads(qkv: QKV, positions: Positions, config: AttentionConfig) -> QKV:
    """Queries, keys and values [B, T, heads, Hd] from [B, T, heads * Hd]; q and k rotated."""
    q, k, v = (x.reshape(*x.shape[:2], -1, config.head_dim) for x in qkv)
    if config.rope is not None and config.table is not None:
        cos, sin = (angles[positions.index] for angles in positions.tables[config.table])
        q, k = rotate(q, cos, sin, config.rope), rotate(k, cos, sin, config.rope)
    return q, k, v


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

    def attend_some(q: jax.Array, positions: jax.Array) -> jax.Array:
        some = CausalMask(positions, mask.window)
        weigh = partial(score_weights, mask=some, divisor=divisor, alibi=alibi, cap=cap)
        return attend_at_once(q, k, v, weigh)

    return map_chunks(attend_some, tokens_at_once(q, k.shape[2]), q, mask.positions)


def tokens_at_once(q: jax.Array, slots: int) -> int:
    """How many tokens of q [B, T, H, Hd] are taken at a time."""
    return max(1, SCORES // (q.shape[0] * q.shape[2] * slots))


def attention_on_codes(
    q: jax.Array,
    past: Slots,
    mask: CausalMask,
    config: AttentionConfig,
    scales: AttentionScales | None,
) -> jax.Array:
    """INT8 attention of q [B, T, H, Hd] over slots of codes -> [B, T, H * Hd]; as `attention`."""

    def attend_some(q: jax.Array, positions: jax.Array) -> jax.Array:
        some = CausalMask(positions, mask.window)
        rule = ScoreRule(mask=some, divisor=config.divisor, alibi=config.alibi, cap=config.cap)
        return attend_codes(q, past, rule, scales)

    return map_chunks(attend_some, tokens_at_once(q, past.shape[1]), q, mask.positions)


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
    rule = ScoreRule(mask=mask, divisor=divisor, alibi=alibi, cap=cap)
    return jax.nn.softmax(mask_scores(scores, rule), axis=-1)
