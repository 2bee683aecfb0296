"""The transformer: tokens in, logits out, one sequence at a time; weights are arguments.

    forward      logits of every token of a sequence
    prefill      the same, chunk by chunk, with keys and values kept in a cache
    decode_step  the logits of one more token, given the cache

A batch is a list of sequences, so prompts of different lengths need neither padding nor a mask
between them.

T new tokens, S slots (cached and new tokens), D model width, E embedding width, V vocabulary,
H query heads, K key-value heads, Hd head width, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from planish.reference.linear import linear
from planish.reference.model.attention import (
    AttentionScales,
    HeadCodes,
    Heads,
    append_heads,
    dequantize_heads,
    int8_attention,
    quantize_heads,
)
from planish.reference.model.config import ModelConfig
from planish.reference.model.embedding import embedding_rows
from planish.reference.model.layers import (
    ACTIVATIONS,
    attention,
    causal_mask,
    normalize,
    soft_cap,
    softmax,
)
from planish.reference.model.rope import rotate, rotations
from planish.reference.model.weights import Block, Experts, Mlp, Weights

PREFILL_CHUNK = 512  # tokens computed at once; only per_tensor activation scales depend on it

Tap = Callable[[str, np.ndarray], None]
ROTATED = ("attention.q", "attention.k", "attention.v")  # for a tap: q, k and v as attention reads
Past = tuple[Heads, Heads]  # one layer's keys and values [S, K, Hd], floats or codes


@dataclass(frozen=True)
class KVCache:
    """The rotated keys and the values of each layer, [S, K, Hd] each; S grows with every token."""

    keys: tuple[Heads, ...]
    values: tuple[Heads, ...]

    @property
    def length(self) -> int:
        """How many tokens are cached."""
        return len(self.keys[0])


def empty_cache(config: ModelConfig) -> KVCache:
    """A cache of no tokens."""
    nothing = np.zeros((0, config.num_kv_heads, config.head_dim), np.float32)
    return KVCache((nothing,) * config.num_layers, (nothing,) * config.num_layers)


def no_tap(name: str, x: np.ndarray) -> None:
    """The default tap: does nothing. A tap receives each linear's name and its input [T, K].

    Also those of ROTATED, with [T, heads * Hd].
    """


def embed(
    config: ModelConfig, weights: Weights, tokens: np.ndarray, positions: np.ndarray
) -> np.ndarray:
    """Token and position embeddings -> [T, D]."""
    x = embedding_rows(weights.embed, tokens) * np.float32(config.embed_scale)  # [T, E]
    if weights.project_in is not None:
        x = linear(x, weights.project_in)  # [T, D]
    if weights.positions is not None:
        x = x + weights.positions[positions + config.position_offset].astype(np.float32)
    return normalize(x, weights.embed_norm)


def block_forward(
    config: ModelConfig,
    block: Block,
    x: np.ndarray,
    positions: np.ndarray,
    past: Past,
    tap: Tap = no_tap,
    length: int | None = None,
) -> tuple[np.ndarray, Past]:
    """One layer: x [T, D] -> [T, D], and its keys and values with those of the new tokens.

    pre         x + attention(norm(x)), then x + mlp(norm(x))
    post        norm(x + attention(x)), then norm(x + mlp(x))
    output      x + norm(attention(x)), then x + norm(mlp(x))
    sandwich    x + norm'(attention(norm(x))), then x + norm'(mlp(norm(x)))
    parallel    x + attention(norm(x)) + mlp(norm'(x))

    `length` is that of the whole sequence if it continues after x; rotary scalings that depend on
    the length (model/rope.py) need it.
    """
    if config.norm_placement == "post":
        attended, past = attend(config, block, x, positions, past, tap, length)
        x = normalize(x + attended, block.attention_norm)
        return normalize(x + mlp(config, block.mlp, x, tap), block.mlp_norm), past
    n = normalize(x, block.attention_norm)
    attended, past = attend(config, block, n, positions, past, tap, length)
    if config.parallel:
        n = n if config.shared_norm else normalize(x, block.mlp_norm)
        return x + attended + mlp(config, block.mlp, n, tap), past
    x = x + normalize(attended, block.attention_output_norm)
    y = mlp(config, block.mlp, normalize(x, block.mlp_norm), tap)
    return x + normalize(y, block.mlp_output_norm), past


def attend(
    config: ModelConfig,
    block: Block,
    x: np.ndarray,
    positions: np.ndarray,
    past: Past,
    tap: Tap = no_tap,
    length: int | None = None,
) -> tuple[np.ndarray, Past]:
    """Attention of x [T, D] to the past and to itself -> [T, D], and the extended past."""
    q, k, v = heads(config, block, x, tap)  # [T, H, Hd], [T, K, Hd] twice
    if block.kind.rope is not None:
        rope = config.ropes[block.kind.rope]
        cos, sin = rotations(rope, positions, length or int(positions[-1]) + 1)
        q, k = rotate(q, cos, sin, rope), rotate(k, cos, sin, rope)
    for name, x in zip(ROTATED, (q, k, v), strict=True):
        tap(name, x.reshape(len(x), -1))
    new = to_cache(config, k, v, block.attention_scales)
    past = append_heads(past[0], new[0]), append_heads(past[1], new[1])  # [S, K, Hd]
    context = attend_past(config, block, q, positions, past)  # [T, H * Hd]
    tap("o", context)
    return linear(context, block.o), past


def attend_past(
    config: ModelConfig, block: Block, q: np.ndarray, positions: np.ndarray, past: Past
) -> np.ndarray:
    """Attention of rotated queries [T, H, Hd] over keys and values [S, K, Hd] -> [T, H * Hd]."""
    mask = causal_mask(positions, len(past[0]), block.kind.window)  # [T, S]
    rest = mask, block.kind.score_divisor, config.alibi, config.score_cap
    keys, values = past
    if config.attention == "float":
        return attention(q, dequantize_heads(keys), dequantize_heads(values), *rest)
    if not (isinstance(keys, HeadCodes) and isinstance(values, HeadCodes)):
        raise TypeError("INT8 attention needs an INT8 cache")
    scales = block.attention_scales if keys.static else None
    q8 = quantize_heads(q, None if scales is None else scales.q)
    return int8_attention(q8, keys, values, *rest)


def heads(
    config: ModelConfig, block: Block, x: np.ndarray, tap: Tap = no_tap
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries [T, H, Hd], keys and values [T, K, Hd]: clipped and normalized, not yet rotated."""
    for name in ("q", "k", "v"):
        tap(name, x)
    q, k, v = (clip(linear(x, layer), config.qkv_clip) for layer in (block.q, block.k, block.v))
    if config.qk_norm == "width":  # q [T, H * Hd], k [T, K * Hd]
        q, k = normalize(q, block.q_norm), normalize(k, block.k_norm)
    q, k, v = (y.reshape(len(x), -1, config.head_dim) for y in (q, k, v))
    if config.qk_norm in ("head", "each_head"):
        q, k = normalize(q, block.q_norm), normalize(k, block.k_norm)
    return q, k, v


def clip(x: np.ndarray, limit: float | None) -> np.ndarray:
    """x clipped to -limit .. limit; x itself where the limit is None."""
    return x if limit is None else np.clip(x, np.float32(-limit), np.float32(limit))


def to_cache(
    config: ModelConfig, k: np.ndarray, v: np.ndarray, scales: AttentionScales | None = None
) -> Past:
    """Rotated keys and values [T, K, Hd] as the cache keeps them (SPEC 3).

    int8: codes with one scale for each token and head. int8_static: codes with calibrated scales.
    """
    if config.kv_cache == "float32":
        return k, v
    if config.kv_cache == "int8":
        return quantize_heads(k), quantize_heads(v)
    if scales is None:
        raise ValueError("a static INT8 cache needs a model with attention scales")
    return quantize_heads(k, scales.k), quantize_heads(v, scales.v)


def mlp(
    config: ModelConfig, weights: Mlp | Experts, x: np.ndarray, tap: Tap = no_tap
) -> np.ndarray:
    """down(act(up x)), or down(act(gate x) * up x) where gated: [T, D] -> [T, D].

    The gated form is a GLU variant: Shazeer 2020, arXiv 2002.05202.
    """
    if isinstance(weights, Experts):
        return mixture(config, weights, x, tap)
    act = ACTIVATIONS[config.activation]
    if weights.gate is not None:
        tap("gate", x)
    tap("up", x)
    inner = linear(x, weights.up)  # [T, F]
    inner = act(inner) if weights.gate is None else act(linear(x, weights.gate)) * inner
    tap("down", inner)
    return linear(inner, weights.down)


def mixture(config: ModelConfig, weights: Experts, x: np.ndarray, tap: Tap = no_tap) -> np.ndarray:
    """The sum of each token's top_k experts, with routing weights: [T, D] -> [T, D].

    Source: Shazeer et al. 2017, arXiv 1701.06538. Tokens are grouped by expert; an expert without
    tokens is not read.
    """
    tap("router", x)
    routing_weights, expert_ids = route(config, linear(x, weights.router))  # [T, top_k] both
    y = np.zeros_like(x)
    for index in np.unique(expert_ids):
        rows, columns = np.nonzero(expert_ids == index)

        def inner_tap(name: str, value: np.ndarray, index: int = index) -> None:
            tap(f"experts.{index}.{name}", value)

        output = mlp(config, weights.experts[index], x[rows], inner_tap)  # [rows, D]
        y[rows] += routing_weights[rows, columns][:, None] * output
    return y


def route(config: ModelConfig, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Routing weights and expert ids of each token, both [T, top_k], from router logits [T, E].

    A softmax over all experts, then the top_k largest; among equals, the lowest id first. The
    weights are divided by their sum if config.moe.normalized.
    """
    if config.moe is None:
        raise ValueError("the model has no experts")
    p = softmax(scores)  # [T, E]
    expert_ids = np.argsort(-p, axis=-1, kind="stable")[:, : config.moe.top_k]
    routing_weights = np.take_along_axis(p, expert_ids, axis=-1)
    if config.moe.normalized:
        routing_weights = routing_weights / np.sum(routing_weights, axis=-1, keepdims=True)
    return routing_weights, expert_ids


def unembed(config: ModelConfig, weights: Weights, x: np.ndarray) -> np.ndarray:
    """Final norm and lm_head: [T, D] -> logits [T, V]."""
    x = normalize(x, weights.final_norm)
    if weights.project_out is not None:
        x = linear(x, weights.project_out)  # [T, E]
    return soft_cap(linear(x, weights.head), config.logit_cap)


def extend(
    config: ModelConfig,
    weights: Weights,
    tokens: np.ndarray,
    cache: KVCache,
    length: int | None = None,
) -> tuple[np.ndarray, KVCache]:
    """Hidden states [T, D] of the tokens that follow the cached ones, and the extended cache.

    `length` is that of the whole sequence if it continues after these tokens.
    """
    positions = np.arange(cache.length, cache.length + len(tokens))
    x, layers = embed(config, weights, tokens, positions), []
    pasts = zip(cache.keys, cache.values, strict=True)
    for block, past in zip(weights.blocks, pasts, strict=True):
        x, extended = block_forward(config, block, x, positions, past, length=length)
        layers.append(extended)
    keys, values = zip(*layers, strict=True)
    return x, KVCache(keys, values)


def forward(config: ModelConfig, weights: Weights, tokens: Sequence[int]) -> np.ndarray:
    """Logits [T, V] of one sequence, all tokens at once; the cache is dropped."""
    x, _ = extend(config, weights, np.asarray(tokens), empty_cache(config))
    return unembed(config, weights, x)


def prefill(
    config: ModelConfig, weights: Weights, tokens: Sequence[int], chunk: int = PREFILL_CHUNK
) -> tuple[np.ndarray, KVCache]:
    """Logits [T, V] of a prompt, computed `chunk` tokens at a time, and its cache."""
    cache, logits = empty_cache(config), []
    for x, extended in hidden_states(config, weights, tokens, chunk):
        cache = extended
        logits.append(unembed(config, weights, x))
    return np.concatenate(logits), cache


def hidden_states(
    config: ModelConfig, weights: Weights, tokens: Sequence[int], chunk: int = PREFILL_CHUNK
) -> Iterator[tuple[np.ndarray, KVCache]]:
    """For each chunk of a prompt, the input [T, D] of the final norm, and the cache so far."""
    cache = empty_cache(config)
    for start in range(0, len(tokens), chunk):
        some = np.asarray(tokens[start : start + chunk])
        x, cache = extend(config, weights, some, cache, len(tokens))
        yield x, cache


def decode_step(
    config: ModelConfig, weights: Weights, token: int, cache: KVCache
) -> tuple[np.ndarray, KVCache]:
    """Logits [V] after one more token, and the extended cache."""
    x, cache = extend(config, weights, np.asarray([token]), cache)
    return unembed(config, weights, x)[0], cache
