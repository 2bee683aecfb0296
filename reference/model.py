"""The transformer: tokens in, logits out, one sequence at a time, weights passed in.

    forward      logits of every token of a sequence
    prefill      the same, chunk by chunk, keeping keys and values in a cache
    decode_step  one more token against the cache

A batch is a list of sequences, so prompts of different lengths need no padding and no mask
between them. T tokens, D model width, E embedding width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from reference.config import ModelConfig
from reference.grids import int8_codes, int8_scale
from reference.layers import (
    ACTIVATIONS,
    Norm,
    attention,
    causal_mask,
    normalize,
    rope,
    rope_tables,
)
from reference.linear import Linear, linear

PREFILL_CHUNK = 512  # tokens computed together; matters only to per_tensor activations

Tap = Callable[[str, np.ndarray], None]


@dataclass(frozen=True)
class Block:
    """One layer. `gate` is absent where the MLP is not gated."""

    attention_norm: Norm
    q: Linear  # [H * Hd, D]
    k: Linear  # [K * Hd, D]
    v: Linear  # [K * Hd, D]
    o: Linear  # [D, H * Hd]
    mlp_norm: Norm
    gate: Linear | None  # [F, D]
    up: Linear  # [F, D]
    down: Linear  # [D, F]


@dataclass(frozen=True)
class Weights:
    """A model. `blocks` may be lazy: it is only ever indexed and iterated in order."""

    embed: np.ndarray  # [V, E]
    positions: np.ndarray | None  # [max_positions + offset, D]
    project_in: Linear | None  # [D, E]
    blocks: Sequence[Block]
    final_norm: Norm | None
    project_out: Linear | None  # [E, D]
    head: Linear  # [V, E]


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
    x = weights.embed[tokens].astype(np.float32)  # [T, E]
    if weights.project_in is not None:
        x = linear(x, weights.project_in)  # [T, D]
    if weights.positions is not None:
        x = x + weights.positions[positions + config.position_offset].astype(np.float32)
    return x


def block_forward(
    config: ModelConfig,
    block: Block,
    x: np.ndarray,
    positions: np.ndarray,
    past: tuple[np.ndarray, np.ndarray],
    tap: Tap = no_tap,
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """One layer over x [T, D] -> [T, D], and its keys and values with the new tokens appended."""
    if config.norm_first:
        attended, past = attend(
            config, block, normalize(x, block.attention_norm, config), positions, past, tap
        )
        x = x + attended
        x = x + mlp(config, block, normalize(x, block.mlp_norm, config), tap)
    else:
        attended, past = attend(config, block, x, positions, past, tap)
        x = normalize(x + attended, block.attention_norm, config)
        x = normalize(x + mlp(config, block, x, tap), block.mlp_norm, config)
    return x, past


def attend(
    config: ModelConfig,
    block: Block,
    x: np.ndarray,
    positions: np.ndarray,
    past: tuple[np.ndarray, np.ndarray],
    tap: Tap = no_tap,
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Attention of x [T, D] over the past and itself -> [T, D], and the longer past."""
    for name in ("q", "k", "v"):
        tap(name, x)
    q = linear(x, block.q).reshape(len(x), config.num_heads, config.head_dim)
    k = linear(x, block.k).reshape(len(x), config.num_kv_heads, config.head_dim)
    v = linear(x, block.v).reshape(len(x), config.num_kv_heads, config.head_dim)
    if config.rope is not None:
        cos, sin = (table[positions] for table in rope_tables(config, positions[-1] + 1))
        q, k = rope(q, cos, sin), rope(k, cos, sin)
    if config.kv_cache == "int8":
        k, v = on_int8_grid(k), on_int8_grid(v)
    keys, values = np.concatenate([past[0], k]), np.concatenate([past[1], v])  # [S, K, Hd]
    mixed = attention(q, keys, values, causal_mask(positions, len(keys)))  # [T, H * Hd]
    tap("o", mixed)
    return linear(mixed, block.o), (keys, values)


def on_int8_grid(x: np.ndarray) -> np.ndarray:
    """What an INT8 cache keeps of keys or values [T, K, Hd]: a scale per token and head."""
    scale = int8_scale(np.abs(x).max(axis=-1, keepdims=True))
    return int8_codes(x, scale).astype(np.float32) * scale


def mlp(config: ModelConfig, block: Block, x: np.ndarray, tap: Tap = no_tap) -> np.ndarray:
    """down(act(up x)), or down(act(gate x) * up x) where gated (Shazeer 2020): [T, D] -> [T, D]."""
    act = ACTIVATIONS[config.activation]
    tap("up", x)
    inner = linear(x, block.up)  # [T, F]
    if block.gate is None:
        inner = act(inner)
    else:
        tap("gate", x)
        inner = act(linear(x, block.gate)) * inner
    tap("down", inner)
    return linear(inner, block.down)


def unembed(config: ModelConfig, weights: Weights, x: np.ndarray) -> np.ndarray:
    """Final norm and head: [T, D] -> logits [T, V]."""
    if weights.final_norm is not None:
        x = normalize(x, weights.final_norm, config)
    if weights.project_out is not None:
        x = linear(x, weights.project_out)  # [T, E]
    return linear(x, weights.head)


def extend(
    config: ModelConfig, weights: Weights, tokens: np.ndarray, cache: KVCache
) -> tuple[np.ndarray, KVCache]:
    """Hidden states [T, D] of new tokens after those in the cache, and the longer cache."""
    positions = np.arange(cache.length, cache.length + len(tokens))
    x, layers = embed(config, weights, tokens, positions), []
    pasts = zip(cache.keys, cache.values, strict=True)
    for block, past in zip(weights.blocks, pasts, strict=True):
        x, longer = block_forward(config, block, x, positions, past)
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
    for start in range(0, len(tokens), chunk):
        x, cache = extend(config, weights, np.asarray(tokens[start : start + chunk]), cache)
        logits.append(unembed(config, weights, x))
    return np.concatenate(logits), cache


def decode_step(
    config: ModelConfig, weights: Weights, token: int, cache: KVCache
) -> tuple[np.ndarray, KVCache]:
    """Logits [V] after one more token, and the cache with it."""
    x, cache = extend(config, weights, np.asarray([token]), cache)
    return unembed(config, weights, x)[0], cache
