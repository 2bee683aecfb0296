"""The pocket model in flax: a Llama (arXiv 2302.13971) with Hugging Face's parameter names.

    x = embed(tokens)
    per layer:  x += o(attention(rotate(q h), rotate(k h), v h))      h = rms_norm(x)
                x += down(silu(gate h) * up h)                        h = rms_norm(x)
    logits = rms_norm(x) embedt

Weights are float32; the linears multiply in bfloat16, which makes a whole step 1.3 times as fast on
an AVX512-BF16 machine. Norms (RMSNorm, arXiv 1910.07467), softmax, RoPE (arXiv 2104.09864) and
logits are float32.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

VOCABULARY = 4096
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}


class Attention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245) with half-split RoPE, as in transformers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, tokens, width = x.shape
        heads, kv_heads, dim = (
            int(SHAPE[k]) for k in ("num_attention_heads", "num_key_value_heads", "head_dim")
        )
        q = dense(heads * dim, "q_proj")(x).reshape(batch, tokens, heads, dim)
        k = dense(kv_heads * dim, "k_proj")(x).reshape(batch, tokens, kv_heads, dim)
        v = dense(kv_heads * dim, "v_proj")(x).reshape(batch, tokens, kv_heads, dim)
        y = attention(rotate(q), rotate(k), v)
        return dense(width, "o_proj")(y.reshape(batch, tokens, heads * dim))


class Mlp(nn.Module):
    """down(silu(gate x) * up x): SwiGLU (arXiv 2002.05202)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inner = int(SHAPE["intermediate_size"])
        y = nn.silu(dense(inner, "gate_proj")(x)) * dense(inner, "up_proj")(x)
        return dense(x.shape[-1], "down_proj")(y)


class Llama(nn.Module):
    """Logits [B, T, V] of tokens [B, T]; lm_head is the embedding."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        initial = nn.initializers.normal(0.02)
        width = int(SHAPE["hidden_size"])
        embed = nn.Embed(VOCABULARY, width, embedding_init=initial, name="embed")
        x = embed(tokens)  # [B, T, D]
        for layer in range(int(SHAPE["num_hidden_layers"])):
            x = x + Attention(name=f"{layer}.self_attn")(norm(f"{layer}.input_layernorm")(x))
            x = x + Mlp(name=f"{layer}.mlp")(norm(f"{layer}.post_attention_layernorm")(x))
        return embed.attend(norm("norm")(x))


def dense(features: int, name: str) -> nn.Dense:
    initial = nn.initializers.normal(0.03)
    return nn.Dense(features, use_bias=False, kernel_init=initial, dtype=jnp.bfloat16, name=name)


def norm(name: str) -> nn.RMSNorm:
    return nn.RMSNorm(epsilon=SHAPE["rms_norm_eps"], name=name)


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Causal softmax(q kt / sqrt(Hd)) v of q [B, T, H, Hd] and k, v [B, T, K, Hd].

    Written as einsums: 1.25 times as fast on a CPU as jax.nn.dot_product_attention.
    """
    batch, tokens, heads, dim = q.shape
    q = q.reshape(batch, tokens, k.shape[2], -1, dim)
    scores = jnp.einsum("btkgd,bskd->bkgts", q, k).astype(jnp.float32) / math.sqrt(dim)
    scores = jnp.where(jnp.tril(jnp.ones((tokens, tokens), bool)), scores, -jnp.inf)
    weights = nn.softmax(scores).astype(v.dtype)
    return jnp.einsum("bkgts,bskd->btkgd", weights, v).reshape(batch, tokens, heads, dim)


def rotate(x: jax.Array) -> jax.Array:
    """Rotary positions of x [B, T, heads, Hd], in float32."""
    dim = x.shape[-1]
    frequency = SHAPE["rope_theta"] ** (-jnp.arange(0, dim, 2) / dim)
    angle = jnp.arange(x.shape[1])[:, None] * frequency
    cos, sin = jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def initial_params(seed: int) -> Any:
    params = Llama().init(jax.random.key(seed), jnp.zeros((1, 8), jnp.int32))
    return {"params": params["params"]}


def loss_of(params: Any, batch: jax.Array) -> jax.Array:
    """Mean cross entropy of tokens 1..T given those before; batch is [B, T + 1]."""
    logits = Llama().apply(params, batch[:, :-1])
    losses: jax.Array = optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:])
    return losses.mean()
