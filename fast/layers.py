"""The parts of a transformer block, as reference/layers.py defines them, for a batch.

B sequences, T tokens, S cache slots, D model width, H query heads, K key-value heads, Hd head
width.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from reference.config import ModelConfig
from reference.layers import Norm


def rms_norm(x: jax.Array, norm: Norm, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * weight."""
    y = x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + jnp.float32(eps))
    return y if norm.weight is None else y * norm.weight[None, None, :]


def layer_norm(x: jax.Array, norm: Norm, eps: float) -> jax.Array:
    """(x - mean) / sqrt(variance + eps) * weight + bias."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    y = centred / jnp.sqrt(variance + jnp.float32(eps))
    y = y if norm.weight is None else y * norm.weight[None, None, :]
    return y if norm.bias is None else y + norm.bias[None, None, :]


NORMS = {"rms_norm": rms_norm, "layer_norm": layer_norm}


def normalize(x: jax.Array, norm: Norm, config: ModelConfig) -> jax.Array:
    """The model's kind of norm over the last axis."""
    return NORMS[config.norm](x, norm, config.norm_eps)


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


def rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate pairs (i, i + dim/2) of x [B, T, heads, Hd] by cos and sin [B, T, Hd/2]."""
    a, b = jnp.split(x, 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def causal_mask(positions: jax.Array, slots: int) -> jax.Array:
    """Which slots a token at each position [B, T] may read -> [B, T, S]."""
    return jnp.arange(slots)[None, None, :] <= positions[:, :, None]


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """softmax(q kt / sqrt(Hd)) v -> [B, T, H * Hd].

    q [B, T, H, Hd], k and v [B, K, S, Hd], mask [B, T, S].
    """
    batch, tokens, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    q = q.reshape(batch, tokens, kv_heads, group, head_dim)
    q = q.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, group * tokens, head_dim)
    scores = jnp.einsum("bkqd,bksd->bkqs", q, k) / jnp.float32(math.sqrt(head_dim))
    scores = scores.reshape(batch, kv_heads, group, tokens, -1)
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -jnp.inf), axis=-1)
    weights = weights.reshape(batch, kv_heads, group * tokens, -1)
    mixed = jnp.einsum("bkqs,bksd->bkqd", weights, v)
    mixed = mixed.reshape(batch, kv_heads, group, tokens, head_dim)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, tokens, heads * head_dim)
