"""The transformer: tokens in, logits out, one sequence at a time, weights passed in.

    forward      logits of every token of a sequence
    prefill      the same, chunk by chunk, keeping keys and values in a cache
    decode_step  one more token against the cache

A batch is a list of sequences, so prompts of different lengths need no padding and no mask
between them. T tokens, D model width, E embedding width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from planish.reference.grids import int8_codes, int8_scale
from planish.reference.linear import linear
from planish.reference.model.config import ModelConfig
from planish.reference.model.layers import (
    ACTIVATIONS,
    attention,
    capped,
    causal_mask,
    normalize,
    softmax,
)
from planish.reference.model.rope import rotate, rotations
from planish.reference.model.weights import Block, Experts, Mlp, Weights

PREFILL_CHUNK = 512  # tokens computed together; matters only to per_tensor activations

Tap = Callable[[str, np.ndarray], None]
Past = tuple[np.ndarray, np.ndarray]  # one layer's keys and values [S, K, Hd]


@dataclass(frozen=True)
class KVCache:
    """Keys (rotated) and values per layer, [S, K, Hd] each; S grows as tokens come."""

    keys: tuple[np.ndarray, ...]
    values: tuple[np.ndarray, ...]

    @property
    def length(self) -> int:
        return self.keys[0].shape[0]


def empty_cache(config: ModelConfig) -> KVCache:
    nothing = np.zeros((0, config.num_kv_heads, config.head_dim), np.float32)
    return KVCache((nothing,) * config.num_layers, (nothing,) * config.num_layers)


def no_tap(name: str, x: np.ndarray) -> None:
    """A tap sees the input [T, K] of every linear; this one looks away."""


def embed(
    config: ModelConfig, weights: Weights, tokens: np.ndarray, positions: np.ndarray
) -> np.ndarray:
    """Token and position embeddings -> [T, D]."""
    x = weights.embed[tokens].astype(np.float32) * np.float32(config.embed_scale)  # [T, E]
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
    """One layer over x [T, D] -> [T, D], and its keys and values with the new tokens appended.

    `length` of the whole sequence, where it does not end with x, is for rotary positions that
    depend on it.
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
    mixed = mlp(config, block.mlp, normalize(x, block.mlp_norm), tap)
    return x + normalize(mixed, block.mlp_output_norm), past


def attend(
    config: ModelConfig,
    block: Block,
    x: np.ndarray,
    positions: np.ndarray,
    past: Past,
    tap: Tap = no_tap,
    length: int | None = None,
) -> tuple[np.ndarray, Past]:
    """Attention of x [T, D] over the past and itself -> [T, D], and the longer past."""
    q, k, v = heads(config, block, x, tap)  # [T, H, Hd], [T, K, Hd] twice
    if block.kind.rope is not None:
        rope = config.ropes[block.kind.rope]
        cos, sin = rotations(rope, positions, length or int(positions[-1]) + 1)
        q, k = rotate(q, cos, sin, rope), rotate(k, cos, sin, rope)
    if config.kv_cache == "int8":
        k, v = on_int8_grid(k), on_int8_grid(v)
    keys, values = np.concatenate([past[0], k]), np.concatenate([past[1], v])  # [S, K, Hd]
    mask = causal_mask(positions, len(keys), block.kind.window)
    mixed = attention(
        q, keys, values, mask, block.kind.score_divisor, config.alibi, config.score_cap
    )  # [T, H * Hd]
    tap("o", mixed)
    return linear(mixed, block.o), (keys, values)


def heads(
    config: ModelConfig, block: Block, x: np.ndarray, tap: Tap = no_tap
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries [T, H, Hd], keys and values [T, K, Hd]: clipped and normalized, not yet turned."""
    for name in ("q", "k", "v"):
        tap(name, x)
    q, k, v = (clipped(linear(x, layer), config.qkv_clip) for layer in (block.q, block.k, block.v))
    if config.qk_norm == "width":
        q, k = normalize(q, block.q_norm), normalize(k, block.k_norm)
    q, k, v = (y.reshape(len(x), -1, config.head_dim) for y in (q, k, v))
    if config.qk_norm in ("head", "each_head"):
        q, k = normalize(q, block.q_norm), normalize(k, block.k_norm)
    return q, k, v


def clipped(x: np.ndarray, clip: float | None) -> np.ndarray:
    return x if clip is None else np.clip(x, np.float32(-clip), np.float32(clip))


def on_int8_grid(x: np.ndarray) -> np.ndarray:
    """What an INT8 cache keeps of keys or values [T, K, Hd]: a scale per token and head."""
    scale = int8_scale(np.abs(x).max(axis=-1, keepdims=True))
    return int8_codes(x, scale).astype(np.float32) * scale


def mlp(
    config: ModelConfig, weights: Mlp | Experts, x: np.ndarray, tap: Tap = no_tap
) -> np.ndarray:
    """down(act(up x)), or down(act(gate x) * up x) where gated (Shazeer 2020): [T, D] -> [T, D]."""
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
    """Each token through its top experts, weighted by the router: [T, D] -> [T, D].

    Shazeer et al. 2017. Tokens are grouped by expert, and an expert without tokens is not read.
    """
    tap("router", x)
    shares, chosen = route(config, linear(x, weights.router))  # [T, top_k] both
    y = np.zeros_like(x)
    for index in np.unique(chosen):
        rows, places = np.nonzero(chosen == index)

        def inner_tap(name: str, value: np.ndarray, index: int = index) -> None:
            tap(f"experts.{index}.{name}", value)

        mixed = mlp(config, weights.experts[index], x[rows], inner_tap)
        y[rows] += shares[rows, places][:, None] * mixed
    return y


def route(config: ModelConfig, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The experts of each token and their shares, from scores [T, E]: both [T, top_k].

    A softmax over all, then the largest, the lowest index first among equals.
    """
    if config.moe is None:
        raise ValueError("the model has no experts")
    shares = softmax(scores)
    chosen = np.argsort(-shares, axis=-1, kind="stable")[:, : config.moe.top_k]
    shares = np.take_along_axis(shares, chosen, axis=-1)
    if config.moe.normalized:
        shares = shares / np.sum(shares, axis=-1, keepdims=True)
    return shares, chosen


def unembed(config: ModelConfig, weights: Weights, x: np.ndarray) -> np.ndarray:
    """Final norm and head: [T, D] -> logits [T, V]."""
    x = normalize(x, weights.final_norm)
    if weights.project_out is not None:
        x = linear(x, weights.project_out)  # [T, E]
    return capped(linear(x, weights.head), config.logit_cap)


def extend(
    config: ModelConfig,
    weights: Weights,
    tokens: np.ndarray,
    cache: KVCache,
    length: int | None = None,
) -> tuple[np.ndarray, KVCache]:
    """Hidden states [T, D] of new tokens after those in the cache, and the longer cache.

    `length` of the whole sequence, where it goes on after these tokens.
    """
    positions = np.arange(cache.length, cache.length + len(tokens))
    x, layers = embed(config, weights, tokens, positions), []
    pasts = zip(cache.keys, cache.values, strict=True)
    for block, past in zip(weights.blocks, pasts, strict=True):
        x, longer = block_forward(config, block, x, positions, past, length=length)
        layers.append(longer)
    keys, values = zip(*layers, strict=True)
    return x, KVCache(keys, values)


def forward(config: ModelConfig, weights: Weights, tokens: Sequence[int]) -> np.ndarray:
    """Logits [T, V] of one sequence, all tokens at once, no cache kept."""
    x, _ = extend(config, weights, np.asarray(tokens), empty_cache(config))
    return unembed(config, weights, x)


def prefill(
    config: ModelConfig, weights: Weights, tokens: Sequence[int], chunk: int = PREFILL_CHUNK
) -> tuple[np.ndarray, KVCache]:
    """Logits [T, V] of a prompt computed `chunk` tokens at a time, and the cache it leaves."""
    cache, logits = empty_cache(config), []
    for x, longer in hidden_states(config, weights, tokens, chunk):
        cache = longer
        logits.append(unembed(config, weights, x))
    return np.concatenate(logits), cache


def hidden_states(
    config: ModelConfig, weights: Weights, tokens: Sequence[int], chunk: int = PREFILL_CHUNK
) -> Iterator[tuple[np.ndarray, KVCache]]:
    """Chunk by chunk of a prompt: what the head reads [T, D], and the cache so far."""
    cache = empty_cache(config)
    for start in range(0, len(tokens), chunk):
        part = np.asarray(tokens[start : start + chunk])
        x, cache = extend(config, weights, part, cache, len(tokens))
        yield x, cache


def decode_step(
    config: ModelConfig, weights: Weights, token: int, cache: KVCache
) -> tuple[np.ndarray, KVCache]:
    """Logits [V] after one more token, and the cache with it."""
    x, cache = extend(config, weights, np.asarray([token]), cache)
    return unembed(config, weights, x)[0], cache
