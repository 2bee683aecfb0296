"""The transformer as jitted functions: the same names as reference/model.py, for a batch.

Positions are arrays, so no step compiles anew; layers are unrolled, because a scan would copy
each layer's weights before every kernel; the cache is donated at the two entry points only.

B sequences, T tokens, D model width, V vocabulary, S cache slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from fast import native
from fast.cache import KVCache, LayerCache, append, empty_layer, is_tiled, read
from fast.layers import ACTIVATIONS, attention, causal_mask, normalize, rope
from fast.linear import linear, project
from reference.block import Block, Weights
from reference.config import ModelConfig
from reference.layers import Norm

Tables = tuple[jax.Array, jax.Array] | None  # cos and sin [max_positions, dim / 2]
DecodeState = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, KVCache]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Draw:
    """How decode_tokens samples: native.sampling_settings, random numbers, ids that end a row."""

    settings: jax.Array  # int32 [5]
    uniform: jax.Array  # int32 [steps, B, 2]
    ends: jax.Array  # int32 [E]


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
    past: LayerCache,
    tables: Tables,
) -> tuple[jax.Array, LayerCache]:
    """One layer over x [B, T, D], and its slots with the new keys and values written."""
    before = (block.attention_norm, block.mlp_norm) if config.norm_first else (None, None)
    x, past = attend(config, block, x, positions, past, tables, before[0], residual=x)
    x = x if config.norm_first else normalize(x, block.attention_norm, config)
    x = mlp(config, block, x, before[1], residual=x)
    return x if config.norm_first else normalize(x, block.mlp_norm, config), past


def attend(
    config: ModelConfig,
    block: Block,
    x: jax.Array,
    positions: jax.Array,
    past: LayerCache,
    tables: Tables,
    norm: Norm | None = None,
    residual: jax.Array | None = None,
) -> tuple[jax.Array, LayerCache]:
    """Attention of norm(x) over the slots + residual -> [B, T, D], and the slots written."""
    q, k, v = project(config, x, norm, (block.q, block.k, block.v))
    if is_tiled(past):
        heads = config.num_kv_heads, config.head_dim
        mixed, past = native.attention(q, k, v, positions, tables, past, *heads)
    else:
        mixed, past = attend_slots(config, q, k, v, positions, past, tables)
    return linear(mixed, block.o, residual), past


def attend_slots(
    config: ModelConfig,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    positions: jax.Array,
    past: LayerCache,
    tables: Tables,
) -> tuple[jax.Array, LayerCache]:
    """The portable form of native.attention: q, k, v [B, T, heads * Hd] -> mixed [B, T, H * Hd]."""
    q, k, v = (y.reshape(*y.shape[:2], -1, config.head_dim) for y in (q, k, v))
    if tables is not None:
        cos, sin = (table[positions] for table in tables)  # [B, T, dim / 2]
        q, k = rope(q, cos, sin), rope(k, cos, sin)
    past = append(past, k, v, positions)
    keys, values = read(past)
    return attention(q, keys, values, causal_mask(positions, keys.shape[2])), past


def mlp(
    config: ModelConfig,
    block: Block,
    x: jax.Array,
    norm: Norm | None = None,
    residual: jax.Array | None = None,
) -> jax.Array:
    """down(act(up n)), or down(act(gate n) * up n) where gated, + residual; n = norm(x)."""
    act = ACTIVATIONS[config.activation]
    if block.gate is None:
        inner = act(project(config, x, norm, (block.up,))[0])
        return linear(inner, block.down, residual)
    both = block.gate, block.up
    if config.activation == "silu" and native.alike(both):
        inner = native.linears(x, both, norm, config.norm, config.norm_eps, gated=True)[0]
    else:
        gate, up = project(config, x, norm, both)
        inner = act(gate) * up
    return linear(inner, block.down, residual)


def unembed(config: ModelConfig, weights: Weights, x: jax.Array) -> jax.Array:
    """Final norm and head: [B, T, D] -> logits [B, T, V]."""
    if weights.project_out is None:
        return project(config, x, weights.final_norm, (weights.head,))[0]
    x = project(config, x, weights.final_norm, (weights.project_out,))[0]
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
    for block, past in zip(weights.blocks, cache.layers, strict=True):
        x, past = block_forward(config, block, x, positions, past, tables)
        layers.append(past)
    return x, KVCache(tuple(layers))


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


@partial(jax.jit, static_argnames=("config", "most"), donate_argnames=("cache",))
def decode_tokens(
    config: ModelConfig,
    weights: Weights,
    tokens: jax.Array,
    positions: jax.Array,
    cache: KVCache,
    tables: Tables,
    draw: Draw,
    count: jax.Array,
    most: int,
) -> tuple[jax.Array, KVCache]:
    """`count` more tokens for every row, tokens and positions [B], without the host in between.

    Returns the sampled tokens [most, B] and the cache. The rows' own ends are the host's matter,
    but when every row has ended the rest is not computed.
    """
    last = jnp.int32(cache.slots - 1)  # a row that has ended must not leave its slots

    def going(state: DecodeState) -> jax.Array:
        step, _, _, ended, _, _ = state
        return (step < count) & ~jnp.all(ended)

    def step(state: DecodeState) -> DecodeState:
        step, tokens, positions, ended, found, cache = state
        x, cache = extend(config, weights, tokens[:, None], positions[:, None], cache, tables)
        logits = unembed(config, weights, x)[:, 0]
        tokens = native.sample(logits, draw.settings, draw.uniform[step])
        ended = ended | jnp.any(tokens[:, None] == draw.ends[None, :], axis=1)
        found = lax.dynamic_update_slice(found, tokens[None], (step, jnp.int32(0)))
        return step + 1, tokens, jnp.minimum(positions + 1, last), ended, found, cache

    rows = tokens.shape[0]
    found = jnp.full((most, rows), -1, jnp.int32)
    start = jnp.int32(0), tokens, positions, jnp.zeros(rows, bool), found, cache
    *_, found, cache = lax.while_loop(going, step, start)
    return found, cache


@partial(jax.jit, static_argnames=("config", "tiled"))
def run_block(
    config: ModelConfig, block: Block, x: jax.Array, tables: Tables, tiled: bool
) -> jax.Array:
    """One block over one whole sequence x [1, T, D], nothing kept: what compare feeds."""
    nothing = empty_layer(config, 1, x.shape[1], tiled)
    positions = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
    return block_forward(config, block, x, positions, nothing, tables)[0]
