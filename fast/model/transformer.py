"""The transformer as jitted functions: the same names as reference/model.py, for a batch.

Positions are arrays, so no step compiles anew; layers are unrolled, because a scan would copy
each layer's weights before every kernel; the cache is donated at the two entry points only.

B sequences, T tokens, D model width, V vocabulary, S cache slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from planish.fast.model import moe as experts
from planish.fast.model.cache import KVCache, LayerCache, append, empty_layer, is_tiled, read
from planish.fast.model.weights import PlacedExperts
from planish.fast.native import attention as native_attention
from planish.fast.native import linear as native
from planish.fast.native import sampling as native_sampling
from planish.fast.xla.layers import ACTIVATIONS, attention, by_parts, capped, normalize, rotate
from planish.fast.xla.linear import linear, project
from planish.reference.model.config import ModelConfig
from planish.reference.model.layers import Norm
from planish.reference.model.weights import Block, Weights
from planish.reference.text.evaluate import LOGITS

Tables = tuple[tuple[jax.Array, jax.Array], ...]  # of each rope: cos and sin [slots, dim / 2]
DecodeState = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, KVCache]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Draw:
    """How decode_tokens samples: sampling_settings(), random numbers, ids that end a row."""

    settings: jax.Array  # int32 [5]
    uniform: jax.Array  # int32 [steps, B, 2]
    ends: jax.Array  # int32 [E]


def embed(
    config: ModelConfig, weights: Weights, tokens: jax.Array, positions: jax.Array
) -> jax.Array:
    """Token and position embeddings of tokens [B, T] -> [B, T, D]."""
    x = weights.embed[tokens] * jnp.float32(config.embed_scale)
    if weights.project_in is not None:
        x = linear(x, weights.project_in)
    if weights.positions is not None:
        x = x + weights.positions[positions + (config.position_offset or 0)]
    return normalize(x, weights.embed_norm)


def block_forward(
    config: ModelConfig,
    block: Block,
    x: jax.Array,
    positions: jax.Array,
    past: LayerCache,
    tables: Tables,
) -> tuple[jax.Array, LayerCache]:
    """One layer over x [B, T, D], and its slots with the new keys and values written."""
    if config.parallel:
        return parallel_forward(config, block, x, positions, past, tables)
    before, after = block.attention_norm, block.attention_output_norm
    if config.norm_placement == "post":
        x, past = attend(config, block, x, positions, past, tables, residual=x)
        x = normalize(x, before)
        return normalize(mlp(config, block.mlp, x, residual=x), block.mlp_norm), past
    if not config.norms_output:
        x, past = attend(config, block, x, positions, past, tables, before, residual=x)
        return mlp(config, block.mlp, x, block.mlp_norm, residual=x), past
    attended, past = attend(config, block, x, positions, past, tables, before)
    x = x + normalize(attended, after)
    mixed = mlp(config, block.mlp, x, block.mlp_norm)
    return x + normalize(mixed, block.mlp_output_norm), past


def parallel_forward(
    config: ModelConfig,
    block: Block,
    x: jax.Array,
    positions: jax.Array,
    past: LayerCache,
    tables: Tables,
) -> tuple[jax.Array, LayerCache]:
    """x + attention(norm(x)) + mlp(norm'(x)); all linears that read one norm in one call."""
    norm = block.attention_norm if config.shared_norm else block.mlp_norm
    weights: Any = block.mlp
    if not config.shared_norm or isinstance(weights, PlacedExperts) or weights.gate is not None:
        y, past = attend(config, block, x, positions, past, tables, block.attention_norm, x)
        return mlp(config, weights, x, norm, residual=y), past
    q, k, v, inner = project(x, norm, (block.q, block.k, block.v, weights.up))
    mixed, past = mix(config, block, q, k, v, positions, past, tables)
    inner = ACTIVATIONS[config.activation](inner)
    return linear(inner, weights.down, linear(mixed, block.o, x)), past


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
    q, k, v = project(x, norm, (block.q, block.k, block.v))
    mixed, past = mix(config, block, q, k, v, positions, past, tables)
    return linear(mixed, block.o, residual), past


def mix(
    config: ModelConfig,
    block: Block,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    positions: jax.Array,
    past: LayerCache,
    tables: Tables,
) -> tuple[jax.Array, LayerCache]:
    """Attention behind q, k, v [B, T, heads * Hd] -> [B, T, H * Hd], and the slots written."""
    q, k, v = heads(config, block, q, k, v)
    kind = block.kind
    rope = None if kind.rope is None else config.ropes[kind.rope]
    table = None if kind.rope is None else tables[kind.rope]
    options: dict[str, Any] = {"divisor": kind.score_divisor, "window": kind.window}
    options |= {"alibi": config.alibi, "cap": config.score_cap}
    if is_tiled(past):
        options["interleaved"] = rope is not None and rope.interleaved
        sizes = config.num_kv_heads, config.head_dim
        return native_attention.attention(q, k, v, positions, table, past, *sizes, **options)
    q, k, v = (by_head(config, y) for y in (q, k, v))
    if rope is not None and table is not None:
        cos, sin = (angles[positions] for angles in table)  # [B, T, dim / 2]
        q, k = rotate(q, cos, sin, rope), rotate(k, cos, sin, rope)
    past = append(past, k, v, positions)
    return attention(q, *read(past), positions, **options), past


def heads(
    config: ModelConfig, block: Block, q: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values [B, T, heads * Hd]: clipped and normalized, not yet turned."""
    if config.qkv_clip is not None:
        q, k, v = (jnp.clip(y, -config.qkv_clip, config.qkv_clip) for y in (q, k, v))
    if config.qk_norm == "width":
        return normalize(q, block.q_norm), normalize(k, block.k_norm), v
    if config.qk_norm is None:
        return q, k, v
    pairs = (q, block.q_norm), (k, block.k_norm)
    q, k = (normalize(by_head(config, y), norm).reshape(y.shape) for y, norm in pairs)
    return q, k, v


def by_head(config: ModelConfig, x: jax.Array) -> jax.Array:
    """[B, T, heads * Hd] -> [B, T, heads, Hd]."""
    return x.reshape(*x.shape[:2], -1, config.head_dim)


def mlp(
    config: ModelConfig,
    weights: Any,
    x: jax.Array,
    norm: Norm | None = None,
    residual: jax.Array | None = None,
) -> jax.Array:
    """down(act(up n)), or down(act(gate n) * up n) where gated, + residual; n = norm(x).

    weights: Mlp or PlacedExperts.
    """
    if isinstance(weights, PlacedExperts):
        return experts.mixture(config, weights, x, norm, residual)
    act = ACTIVATIONS[config.activation]
    if weights.gate is None:
        inner = act(project(x, norm, (weights.up,))[0])
        return linear(inner, weights.down, residual)
    both = weights.gate, weights.up
    if config.activation == "silu" and native.alike(both):
        inner = native.linears(x, both, norm, gated=True)[0]
    else:
        gate, up = project(x, norm, both)
        inner = act(gate) * up
    return linear(inner, weights.down, residual)


def unembed(config: ModelConfig, weights: Weights, x: jax.Array) -> jax.Array:
    """Final norm and head: [B, T, D] -> logits [B, T, V]."""
    if weights.project_out is None:
        logits = project(x, weights.final_norm, (weights.head,))[0]
    else:
        x = project(x, weights.final_norm, (weights.project_out,))[0]
        logits = linear(x, weights.head)
    return capped(logits, config.logit_cap)


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
def losses(
    config: ModelConfig,
    weights: Weights,
    tokens: jax.Array,
    positions: jax.Array,
    cache: KVCache,
    tables: Tables,
    targets: jax.Array,
) -> tuple[jax.Array, KVCache]:
    """A chunk as in `prefill`: -log p of the token after each, targets [1, T], float32 [1, T]."""
    x, cache = extend(config, weights, tokens, positions, cache, tables)
    parts = -(-x.shape[1] * config.vocab_size // LOGITS)
    some = partial(target_losses, config, weights)
    return by_parts(some, -(-x.shape[1] // parts), x, targets), cache


def target_losses(
    config: ModelConfig, weights: Weights, x: jax.Array, targets: jax.Array
) -> jax.Array:
    """log(sum of exp(logits)) - logit of the target: hidden states [B, T, D] -> [B, T]."""
    logits = unembed(config, weights, x)
    best = jnp.max(logits, axis=-1, keepdims=True)
    total = jnp.sum(jnp.exp(logits - best), axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    return jnp.log(total) + (best - chosen)[..., 0]  # the difference first: it is nearly exact


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
        tokens = native_sampling.sample(logits, draw.settings, draw.uniform[step])
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
