"""The transformer as jitted functions: the same names as reference/model.py, for a batch.

Positions are arrays, so no step compiles anew; layers are unrolled, because a scan would copy
each layer's weights before every kernel; the cache is donated at the two entry points only.

B sequences, T tokens, D model width, V vocabulary, S cache slots.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from fast.cache import KVCache, append
from fast.layers import ACTIVATIONS, attention, causal_mask, normalize, rope
from fast.linear import linear
from reference.config import ModelConfig
from reference.model import Block, Weights

Tables = tuple[jax.Array, jax.Array] | None  # cos and sin [max_positions, dim / 2]


def embed(
    config: ModelConfig, weights: Weights, tokens: jax.Array, positions: jax.Array
) -> jax.Array:
    """Token and position embeddings of tokens [B, T] -> [B, T, D]."""
    x = weights.embed[tokens]
    if weights.project_in is not None:
        x = linear(x, weights.project_in)
    if weights.positions is not None:
        x = x + weights.positions[positions + (config.position_offset or 0)]
    return x


def block_forward(
    config: ModelConfig,
    block: Block,
    x: jax.Array,
    positions: jax.Array,
    past: tuple[jax.Array, jax.Array],
    tables: Tables,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """One layer over x [B, T, D], and its slots with the new keys and values written."""
    if config.norm_first:
        normed = normalize(x, block.attention_norm, config)
        attended, past = attend(config, block, normed, positions, past, tables)
        x = x + attended
        x = x + mlp(config, block, normalize(x, block.mlp_norm, config))
    else:
        attended, past = attend(config, block, x, positions, past, tables)
        x = normalize(x + attended, block.attention_norm, config)
        x = normalize(x + mlp(config, block, x), block.mlp_norm, config)
    return x, past


def attend(
    config: ModelConfig,
    block: Block,
    x: jax.Array,
    positions: jax.Array,
    past: tuple[jax.Array, jax.Array],
    tables: Tables,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Attention of x [B, T, D] over the slots -> [B, T, D], and the slots written."""
    shape = x.shape[:2]
    q = linear(x, block.q).reshape(*shape, config.num_heads, config.head_dim)
    k = linear(x, block.k).reshape(*shape, config.num_kv_heads, config.head_dim)
    v = linear(x, block.v).reshape(*shape, config.num_kv_heads, config.head_dim)
    if tables is not None:
        cos, sin = (table[positions] for table in tables)  # [B, T, dim / 2]
        q, k = rope(q, cos, sin), rope(k, cos, sin)
    keys, values = append(past[0], k, positions), append(past[1], v, positions)
    mixed = attention(q, keys, values, causal_mask(positions, keys.shape[2]))
    return linear(mixed, block.o), (keys, values)


def mlp(config: ModelConfig, block: Block, x: jax.Array) -> jax.Array:
    """down(act(up x)), or down(act(gate x) * up x) where gated: [B, T, D] -> [B, T, D]."""
    act = ACTIVATIONS[config.activation]
    inner = linear(x, block.up)
    inner = act(inner) if block.gate is None else act(linear(x, block.gate)) * inner
    return linear(inner, block.down)


def unembed(config: ModelConfig, weights: Weights, x: jax.Array) -> jax.Array:
    """Final norm and head: [B, T, D] -> logits [B, T, V]."""
    if weights.final_norm is not None:
        x = normalize(x, weights.final_norm, config)
    if weights.project_out is not None:
        x = linear(x, weights.project_out)
    return linear(x, weights.head)


def extend(
    config: ModelConfig,
    weights: Weights,
    tokens: jax.Array,
    positions: jax.Array,
    cache: KVCache,
    tables: Tables,
) -> tuple[jax.Array, KVCache]:
    """Hidden states [B, T, D] of new tokens, and the cache with them."""
    x, layers = embed(config, weights, tokens, positions), []
    for block, *past in zip(weights.blocks, cache.keys, cache.values, strict=True):
        x, written = block_forward(config, block, x, positions, (past[0], past[1]), tables)
        layers.append(written)
    keys, values = zip(*layers, strict=True)
    return x, KVCache(keys, values)


@partial(jax.jit, static_argnames=("config", "all_logits"), donate_argnames=("cache",))
def prefill(
    config: ModelConfig,
    weights: Weights,
    tokens: jax.Array,
    positions: jax.Array,
    cache: KVCache,
    tables: Tables,
    all_logits: bool,
) -> tuple[jax.Array, KVCache]:
    """A chunk of one prompt, tokens [1, T]: logits [1, T, V], or [1, 1, V] of the last token only.

    A chunk shorter than its bucket is padded by repeating the last token at its position, so
    the last row is the last token's whatever the padding.
    """
    x, cache = extend(config, weights, tokens, positions, cache, tables)
    return unembed(config, weights, x if all_logits else x[:, -1:]), cache


@partial(jax.jit, static_argnames=("config",), donate_argnames=("cache",))
def decode_step(
    config: ModelConfig,
    weights: Weights,
    tokens: jax.Array,
    positions: jax.Array,
    cache: KVCache,
    tables: Tables,
) -> tuple[jax.Array, KVCache]:
    """One more token for every row, tokens and positions [B]: logits [B, V]."""
    x, cache = extend(config, weights, tokens[:, None], positions[:, None], cache, tables)
    return unembed(config, weights, x)[:, 0], cache


@partial(jax.jit, static_argnames=("config",))
def run_block(config: ModelConfig, block: Block, x: jax.Array, tables: Tables) -> jax.Array:
    """One block over one whole sequence x [1, T, D], nothing kept: what compare feeds."""
    nothing = jnp.zeros((1, config.num_kv_heads, x.shape[1], config.head_dim), jnp.float32)
    positions = jnp.arange(x.shape[1])[None]
    return block_forward(config, block, x, positions, (nothing, nothing), tables)[0]
