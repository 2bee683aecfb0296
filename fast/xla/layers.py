"""The parts of a transformer block, as reference/layers.py defines them, for a batch.

B sequences, T tokens, S cache slots, D model width, H query heads, K key-value heads, Hd head
width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from planish.reference.model.config import Alibi
from planish.reference.model.layers import Norm
from planish.reference.model.rope import Rope

SCORES = 2**24  # scores that attention makes at a time: 64 MiB, or those of one token


def rms_norm(x: jax.Array, norm: Norm) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * weight."""
    y = x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + jnp.float32(norm.eps))
    return y if norm.weight is None else y * aligned(norm.weight, y)


def layer_norm(x: jax.Array, norm: Norm) -> jax.Array:
    """(x - mean) / sqrt(variance + eps) * weight + bias."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    y = centred / jnp.sqrt(variance + jnp.float32(norm.eps))
    y = y if norm.weight is None else y * aligned(norm.weight, y)
    return y if norm.bias is None else y + aligned(norm.bias, y)


def aligned(x: np.ndarray | jax.Array, y: jax.Array) -> jax.Array:
    """x with axes of length 1 in front, as many as y has."""
    return jnp.asarray(x).reshape((1,) * (y.ndim - x.ndim) + x.shape)


NORMS = {"rms_norm": rms_norm, "layer_norm": layer_norm}


def normalize(x: jax.Array, norm: Norm | None) -> jax.Array:
    """norm(x) over the last axis; x itself where the model has no norm here."""
    return x if norm is None else NORMS[norm.kind](x, norm)


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


def capped(x: jax.Array, cap: float | None) -> jax.Array:
    """cap * tanh(x / cap); None caps nothing."""
    return x if cap is None else jnp.float32(cap) * jnp.tanh(x / jnp.float32(cap))


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array, rope: Rope) -> jax.Array:
    """Turn the pairs of the first `dim` entries of x [B, T, heads, Hd] by cos and sin [B, T, :]."""
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]  # [B, T, 1, dim / 2]
    turned, rest = x[..., : rope.dim], x[..., rope.dim :]
    if rope.interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]  # [B, T, heads, dim / 2] each
        turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
        return jnp.concatenate([turned.reshape(*x.shape[:-1], rope.dim), rest], axis=-1)
    a, b = jnp.split(turned, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def causal_mask(positions: jax.Array, slots: int, window: int | None = None) -> jax.Array:
    """Which slots a token at each position [B, T] may read -> [B, T, S]."""
    distance = positions[:, :, None] - jnp.arange(slots, dtype=positions.dtype)[None, None, :]
    return (distance >= 0) & (distance < (window or slots))


def alibi_biases(alibi: Alibi, positions: jax.Array, slots: int) -> jax.Array:
    """slope * (slot - position) for each head: [B, H, T, S], or [1, H, 1, S] rounded to bfloat16.

    reduce_precision rounds as bfloat16 does; a conversion there and back XLA may leave out.
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
    positions: jax.Array,
    divisor: float,
    window: int | None = None,
    alibi: Alibi | None = None,
    cap: float | None = None,
) -> jax.Array:
    """softmax(q kt / divisor) v for q [B, T, H, Hd], k and v [B, K, S, Hd] -> [B, T, H * Hd].

    positions [B, T] say what each token may read. As many tokens are taken at a time as make
    SCORES scores, so that memory does not grow with the context.
    """
    batch, _, heads, _ = q.shape
    some = partial(attend_some, k=k, v=v, divisor=divisor, window=window, alibi=alibi, cap=cap)
    return by_parts(some, max(1, SCORES // (batch * heads * k.shape[2])), q, positions)


def by_parts(function: Callable[..., jax.Array], count: int, *arrays: jax.Array) -> jax.Array:
    """function(*arrays) for arrays [B, T, ...] -> [B, T, ...], of `count` tokens at a time."""
    batch, tokens = arrays[0].shape[:2]
    if tokens <= count:
        return function(*arrays)
    parts = -(-tokens // count)
    spare = parts * count - tokens

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, spare), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(batch, parts, count, *x.shape[2:]).swapaxes(0, 1)

    y = lax.map(lambda part: function(*part), tuple(map(split, arrays)))  # [parts, B, count, ...]
    return y.swapaxes(0, 1).reshape(batch, parts * count, *y.shape[3:])[:, :tokens]


def attend_some(
    q: jax.Array,
    positions: jax.Array,
    k: jax.Array,
    v: jax.Array,
    divisor: float,
    window: int | None,
    alibi: Alibi | None,
    cap: float | None,
) -> jax.Array:
    """`attention` of all tokens at once."""
    batch, tokens, heads, head_dim = q.shape
    kv_heads, slots = k.shape[1:3]
    shared = heads // kv_heads
    q = q.reshape(batch, tokens, kv_heads, shared, head_dim)
    q = q.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, shared * tokens, head_dim)
    scores = jnp.einsum("bkqd,bksd->bkqs", q, k).reshape(batch, heads, tokens, slots)
    scores = capped(biased(scores, divisor, alibi, positions), cap)
    mask = causal_mask(positions, slots, window)[:, None]  # [B, 1, T, S]
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
    weights = weights.reshape(batch, kv_heads, shared * tokens, slots)
    mixed = jnp.einsum("bkqs,bksd->bkqd", weights, v)
    mixed = mixed.reshape(batch, heads, tokens, head_dim)
    return mixed.transpose(0, 2, 1, 3).reshape(batch, tokens, heads * head_dim)


def biased(
    scores: jax.Array, divisor: float, alibi: Alibi | None, positions: jax.Array
) -> jax.Array:
    """Scores [B, H, T, S] divided, and biased before or after."""
    if alibi is None:
        return scores / jnp.float32(divisor)
    biases = alibi_biases(alibi, positions, scores.shape[-1])
    if alibi.divided:
        return (scores + biases) / jnp.float32(divisor)
    return scores / jnp.float32(divisor) + biases
