"""The transformer as jitted functions: the reference's, for a batch, over a cache of fixed slots.

    prefill, forward    a chunk of one prompt: logits of its last token, or of all
    losses              a chunk of a text: -log p of each next token
    scores              the same, and whether that token is the likeliest
    decode_step         one more token for every row
    decode_tokens       several, sampled on the device
    step_rows           tokens of several rows of a cache of pages: logits of some of them

Positions are arrays, so no step compiles a new program. Layers are unrolled, because a scan would
copy each layer's weights before every kernel. The cache is donated at these entry points only. The
backend (backend.py) computes; this module only sets the order.

B sequences, T tokens, D model width, V vocabulary, S cache slots.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from planish.fast.model.backend import QKV, Backend, Draw, Normed, Positions, attention_config
from planish.fast.model.cache import KVCache, LayerCache
from planish.fast.model.embedding import embedding_rows
from planish.fast.model.layers import ACTIVATIONS, map_chunks, soft_cap
from planish.fast.model.losses import Judge, rows_at_a_time, target_losses, target_scores
from planish.fast.model.weights import PlacedExperts
from planish.reference.model.config import ModelConfig
from planish.reference.model.weights import Block, Weights

DecodeState = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, KVCache]

program = partial(jax.jit, static_argnames=("config", "backend"), donate_argnames=("cache",))


@jax.named_scope("embed")
def embed(
    config: ModelConfig,
    weights: Weights,
    tokens: jax.Array,
    positions: jax.Array,
    backend: Backend,
) -> jax.Array:
    """Token and position embeddings of tokens [B, T] -> [B, T, D].

    Without an embedding, tokens are the hidden states of the stage before (parallel/stages.py).
    """
    if weights.embed is None:
        return tokens
    x = embedding_rows(weights.embed, tokens) * jnp.float32(config.embed_scale)  # [B, T, E]
    if weights.project_in is not None:
        x = backend.linear(x, weights.project_in)  # [B, T, D]
    if weights.positions is not None:
        x = x + weights.positions[positions + (config.position_offset or 0)]
    return backend.normalize(x, weights.embed_norm)


def block_forward(
    config: ModelConfig,
    block: Block,
    x: jax.Array,
    positions: Positions,
    past: LayerCache,
    backend: Backend,
) -> tuple[jax.Array, LayerCache]:
    """One layer of x [B, T, D], and its slots with the new keys and values."""
    if config.parallel:
        return parallel_forward(config, block, x, positions, past, backend)
    x, past = attention_half(config, block, x, positions, past, backend)
    return mlp_half(config, block, x, backend), past


def attention_half(
    config: ModelConfig,
    block: Block,
    x: jax.Array,
    positions: Positions,
    past: LayerCache,
    backend: Backend,
) -> tuple[jax.Array, LayerCache]:
    """A layer's first half: x [B, T, D] + attention, and the updated slots."""
    if config.norm_placement == "post":
        x, past = attend(config, block, Normed(x), positions, past, backend, residual=x)
        return backend.normalize(x, block.attention_norm), past
    n = Normed(x, block.attention_norm)
    if not config.norms_output:
        return attend(config, block, n, positions, past, backend, residual=x)
    attended, past = attend(config, block, n, positions, past, backend)
    return x + backend.normalize(attended, block.attention_output_norm), past


def mlp_half(config: ModelConfig, block: Block, x: jax.Array, backend: Backend) -> jax.Array:
    """A layer's second half, which reads each token by itself: x [B, T, D] + MLP."""
    if config.norm_placement == "post":
        y = mlp(config, block.mlp, Normed(x), backend, residual=x)
        return backend.normalize(y, block.mlp_norm)
    n = Normed(x, block.mlp_norm)
    if not config.norms_output:
        return mlp(config, block.mlp, n, backend, residual=x)
    return x + backend.normalize(mlp(config, block.mlp, n, backend), block.mlp_output_norm)


def parallel_forward(
    config: ModelConfig,
    block: Block,
    x: jax.Array,
    positions: Positions,
    past: LayerCache,
    backend: Backend,
) -> tuple[jax.Array, LayerCache]:
    """x + attention(norm(x)) + mlp(norm'(x)); linears that read one norm share a call."""
    n = Normed(x, block.attention_norm)
    weights: Any = block.mlp
    if not config.shared_norm or isinstance(weights, PlacedExperts) or weights.gate is not None:
        other = n if config.shared_norm else Normed(x, block.mlp_norm)
        y, past = attend(config, block, n, positions, past, backend, residual=x)
        return mlp(config, weights, other, backend, residual=y), past
    with jax.named_scope("qkv_up"):
        q, k, v, inner = backend.project(n, (block.q, block.k, block.v, weights.up))
    context, past = attend_slots(config, block, (q, k, v), positions, past, backend)
    inner = ACTIVATIONS[config.activation](inner)
    return backend.linear(inner, weights.down, backend.linear(context, block.o, x)), past


def attend(
    config: ModelConfig,
    block: Block,
    x: Normed,
    positions: Positions,
    past: LayerCache,
    backend: Backend,
    residual: jax.Array | None = None,
) -> tuple[jax.Array, LayerCache]:
    """Attention of x over the slots, + residual -> [B, T, D], and the updated slots."""
    with jax.named_scope("qkv"):
        q, k, v = backend.project(x, (block.q, block.k, block.v))  # [B, T, heads * Hd] each
    context, past = attend_slots(config, block, (q, k, v), positions, past, backend)
    with jax.named_scope("o"):
        return backend.linear(context, block.o, residual), past


@jax.named_scope("attention")
def attend_slots(
    config: ModelConfig,
    block: Block,
    qkv: QKV,
    positions: Positions,
    past: LayerCache,
    backend: Backend,
) -> tuple[jax.Array, LayerCache]:
    """From q, k, v [B, T, heads * Hd] to the input of `o` [B, T, H * Hd], and the updated slots."""
    qkv = clip_and_normalize(config, block, qkv, backend)
    scales = block.attention_scales if config.kv_cache == "int8_static" else None
    return backend.attention(qkv, positions, past, attention_config(config, block.kind), scales)


def clip_and_normalize(config: ModelConfig, block: Block, qkv: QKV, backend: Backend) -> QKV:
    """Queries, keys and values [B, T, heads * Hd]: clipped and normalized, not yet rotated."""
    q, k, v = qkv
    if config.qkv_clip is not None:
        q, k, v = (jnp.clip(y, -config.qkv_clip, config.qkv_clip) for y in qkv)
    if config.qk_norm == "width":
        return backend.normalize(q, block.q_norm), backend.normalize(k, block.k_norm), v
    if config.qk_norm is None:
        return q, k, v

    def by_head(y: jax.Array) -> jax.Array:
        return y.reshape(*y.shape[:2], -1, config.head_dim)  # [B, T, heads, Hd]

    q = backend.normalize(by_head(q), block.q_norm).reshape(q.shape)
    return q, backend.normalize(by_head(k), block.k_norm).reshape(k.shape), v


def mlp(
    config: ModelConfig,
    weights: Any,
    x: Normed,
    backend: Backend,
    residual: jax.Array | None = None,
) -> jax.Array:
    """down(act(up x)), or down(act(gate x) * up x) if gated, + residual -> [B, T, D].

    weights: Mlp or PlacedExperts. Source of the gated form: GLU variants, arXiv 2002.05202.
    """
    if isinstance(weights, PlacedExperts):
        with jax.named_scope("moe"):
            return backend.moe(config, weights, x, residual)
    with jax.named_scope("mlp"):
        if weights.gate is None:
            inner = ACTIVATIONS[config.activation](backend.project(x, (weights.up,))[0])
        else:
            inner = backend.gated(x, weights.gate, weights.up, config.activation)  # [B, T, F]
        return backend.linear(inner, weights.down, residual)


@jax.named_scope("head")
def unembed(config: ModelConfig, weights: Weights, x: jax.Array, backend: Backend) -> jax.Array:
    """Final norm and head: [B, T, D] -> logits [B, T, V].

    Without a head, the hidden states as they are, for the stage after (parallel/stages.py).
    """
    if weights.head is None:
        return x
    n = Normed(x, weights.final_norm)
    if weights.project_out is None:
        return soft_cap(backend.project(n, (weights.head,))[0], config.logit_cap)
    x = backend.project(n, (weights.project_out,))[0]  # [B, T, E]
    return soft_cap(backend.linear(x, weights.head), config.logit_cap)


def extend(
    config: ModelConfig,
    weights: Weights,
    tokens: jax.Array,
    cache: KVCache,
    positions: Positions,
    backend: Backend,
) -> tuple[jax.Array, KVCache]:
    """Hidden states [B, T, D] of new tokens, and the cache with them."""
    x, layers = embed(config, weights, tokens, positions.index, backend), []
    for number, (block, past) in enumerate(zip(weights.blocks, cache.layers, strict=True)):
        with jax.named_scope(f"layer_{number}"):
            x, past = block_forward(config, block, x, positions, past, backend)
        layers.append(past)
    return x, KVCache(tuple(layers))


@program
def prefill(
    config: ModelConfig,
    weights: Weights,
    tokens: jax.Array,
    cache: KVCache,
    positions: Positions,
    backend: Backend,
) -> tuple[jax.Array, KVCache]:
    """A chunk of one prompt, tokens [1, T]: logits [1, 1, V] of the last token.

    A short chunk is padded by repeating its last token at the same position, so the last row is
    always the last token's.
    """
    x, cache = extend(config, weights, tokens, cache, positions, backend)
    return unembed(config, weights, x[:, -1:], backend), cache


@program
def forward(
    config: ModelConfig,
    weights: Weights,
    tokens: jax.Array,
    cache: KVCache,
    positions: Positions,
    backend: Backend,
) -> tuple[jax.Array, KVCache]:
    """A chunk as in `prefill`: logits [1, T, V] of every token."""
    x, cache = extend(config, weights, tokens, cache, positions, backend)
    return unembed(config, weights, x, backend), cache


@program
def losses(
    config: ModelConfig,
    weights: Weights,
    tokens: jax.Array,
    cache: KVCache,
    positions: Positions,
    backend: Backend,
    targets: jax.Array,
) -> tuple[jax.Array, KVCache]:
    """A chunk as in `prefill`: -log p of the token after each, targets [1, T], float32 [1, T]."""
    x, cache = extend(config, weights, tokens, cache, positions, backend)
    return judge_targets(target_losses, config, weights, x, targets, backend), cache


@program
def scores(
    config: ModelConfig,
    weights: Weights,
    tokens: jax.Array,
    cache: KVCache,
    positions: Positions,
    backend: Backend,
    targets: jax.Array,
) -> tuple[jax.Array, KVCache]:
    """A chunk as in `losses`: for each target also whether it is the likeliest, [1, T, 2]."""
    x, cache = extend(config, weights, tokens, cache, positions, backend)
    return judge_targets(target_scores, config, weights, x, targets, backend), cache


def judge_targets(
    judge: Judge,
    config: ModelConfig,
    weights: Weights,
    x: jax.Array,
    targets: jax.Array,
    backend: Backend,
) -> jax.Array:
    """Judge the target of every token of x [B, T, D], a few tokens' logits at a time."""

    def judge_chunk(x: jax.Array, targets: jax.Array) -> jax.Array:
        return judge(unembed(config, weights, x, backend), targets)

    return map_chunks(judge_chunk, rows_at_a_time(x.shape[1], config.vocab_size), x, targets)


@program
def decode_step(
    config: ModelConfig,
    weights: Weights,
    tokens: jax.Array,
    cache: KVCache,
    positions: Positions,
    backend: Backend,
) -> tuple[jax.Array, KVCache]:
    """One more token for every row, tokens and positions [B]: logits [B, V]."""
    return extend_by_one(config, weights, tokens, cache, positions, backend)


@program
def decode_tokens(
    config: ModelConfig,
    weights: Weights,
    tokens: jax.Array,
    cache: KVCache,
    positions: Positions,
    backend: Backend,
    draw: Draw,
) -> tuple[jax.Array, KVCache]:
    """draw.count more tokens for every row, tokens and positions [B], without the host.

    Returns the sampled tokens [steps, B] and the cache; tokens that were not computed are -1. The
    host cuts each row at its end; here, decoding stops when every row has ended.
    """
    last = jnp.int32(positions.slots(cache) - 1)  # a row that has ended stays within its slots

    def is_unfinished(state: DecodeState) -> jax.Array:
        step, _, _, ended, _, _ = state
        return (step < draw.count) & ~jnp.all(ended)

    def step(state: DecodeState) -> DecodeState:
        step, tokens, index, ended, found, cache = state
        where = replace(positions, index=index)
        logits, cache = extend_by_one(config, weights, tokens, cache, where, backend)
        with jax.named_scope("sample"):
            tokens = backend.sample(logits, draw.sampling, draw.uniform[step])
        ended = ended | jnp.any(tokens[:, None] == draw.ends, axis=1)
        found = lax.dynamic_update_slice(found, tokens[None], (step, jnp.int32(0)))
        return step + 1, tokens, jnp.minimum(index + 1, last), ended, found, cache

    rows = tokens.shape[0]
    found = jnp.full((draw.uniform.shape[0], rows), -1, jnp.int32)
    ended = jnp.zeros(rows, bool) if positions.rows is None else positions.rows < 0
    start = jnp.int32(0), tokens, positions.index, ended, found, cache
    *_, found, cache = lax.while_loop(is_unfinished, step, start)
    return found, cache


def extend_by_one(
    config: ModelConfig,
    weights: Weights,
    tokens: jax.Array,
    cache: KVCache,
    positions: Positions,
    backend: Backend,
) -> tuple[jax.Array, KVCache]:
    """Logits [B, V] after one more token for every row, tokens and positions [B]."""
    positions = replace(positions, index=positions.index[:, None])
    x, cache = extend(config, weights, tokens[:, None], cache, positions, backend)
    return unembed(config, weights, x, backend)[:, 0], cache


@program
def step_rows(
    config: ModelConfig,
    weights: Weights,
    tokens: jax.Array,
    cache: KVCache,
    positions: Positions,
    backend: Backend,
    wanted: jax.Array,
) -> tuple[jax.Array, KVCache]:
    """More tokens [1, T] of any rows, each row's in order: logits [W, V] of those at `wanted` [W].

    The end is padded by repeating the last token, as in `prefill`.
    """
    x, cache = extend(config, weights, tokens, cache, positions, backend)
    return unembed(config, weights, x[:, wanted], backend)[0], cache


@partial(jax.jit, static_argnames=("config", "backend"))
def run_block(
    config: ModelConfig, block: Block, x: jax.Array, positions: Positions, backend: Backend
) -> jax.Array:
    """One block of one whole sequence x [1, T, D], without keeping the cache; for compare/."""
    nothing: Any = backend.empty_layer(config, 1, x.shape[1])
    return block_forward(config, block, x, positions, nothing, backend)[0]
