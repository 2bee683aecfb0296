"""The parts of a transformer block, for one sequence, in float32 (SPEC 6).

T tokens, S cached tokens and new ones together, D model width, H query heads, K key-value
heads, Hd head width, F feed-forward width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from reference.config import ModelConfig


@dataclass(frozen=True)
class Norm:
    """Weight [D] and bias [D]; either may be absent."""

    weight: np.ndarray | None
    bias: np.ndarray | None = None


def rms_norm(x: np.ndarray, norm: Norm, eps: float) -> np.ndarray:
    """x / sqrt(mean(x^2) + eps) * weight. Zhang and Sennrich 2019."""
    y = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps))
    return y if norm.weight is None else y * norm.weight


def layer_norm(x: np.ndarray, norm: Norm, eps: float) -> np.ndarray:
    """(x - mean) / sqrt(variance + eps) * weight + bias. Ba et al. 2016."""
    centred = x - np.mean(x, axis=-1, keepdims=True)
    y = centred / np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True) + np.float32(eps))
    y = y if norm.weight is None else y * norm.weight
    return y if norm.bias is None else y + norm.bias


NORMS = {"rms_norm": rms_norm, "layer_norm": layer_norm}


def normalize(x: np.ndarray, norm: Norm, config: ModelConfig) -> np.ndarray:
    """The model's kind of norm over the last axis."""
    return NORMS[config.norm](x, norm, config.norm_eps)


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x), written so that no exponential overflows."""
    e = np.exp(-np.abs(x))
    return x * np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def gelu(x: np.ndarray) -> np.ndarray:
    """x/2 (1 + erf(x / sqrt 2)). Hendrycks and Gimpel 2016."""
    erf = np.vectorize(math.erf, otypes=[np.float32])
    return np.float32(0.5) * x * (1 + erf(x / np.float32(math.sqrt(2))))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """The tanh approximation of gelu: gelu_new, gelu_fast, gelu_pytorch_tanh."""
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * (x * x * x))
    return np.float32(0.5) * x * (1 + np.tanh(inner))


ACTIVATIONS = {"relu": relu, "silu": silu, "gelu": gelu, "gelu_tanh": gelu_tanh}


def rope_tables(config: ModelConfig, length: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin [length, dim / 2] of position * theta ** (-2i / dim). Su et al. 2021."""
    if config.rope is None:
        raise ValueError("the model has no rotary positions")
    exponent = (
        np.arange(0, config.rope.dim, 2) / config.rope.dim
    )  # float64: the power is rounded once
    frequency = np.float32(1) / np.power(config.rope.theta, exponent).astype(np.float32)
    angle = np.arange(length, dtype=np.float32)[:, None] * frequency
    return np.cos(angle), np.sin(angle)


def rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotate pairs (i, i + dim/2) of x [T, heads, Hd]: Hugging Face's half-split pairing.

    (The paper pairs neighbours, 2i with 2i + 1; converted checkpoints have their rows permuted.)
    """
    a, b = np.split(x, 2, axis=-1)  # [T, heads, Hd/2] each
    cos, sin = cos[:, None, :], sin[:, None, :]  # [T, 1, Hd/2]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def causal_mask(positions: np.ndarray, slots: int) -> np.ndarray:
    """Which of the slots 0..S-1 a token at each position may read: itself and what lies before."""
    return np.arange(slots)[None, :] <= positions[:, None]  # [T, S]


def softmax(x: np.ndarray) -> np.ndarray:
    """exp(x - max) / sum, over the last axis."""
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """softmax(q kt / sqrt(Hd)) v for q [T, H, Hd], k and v [S, K, Hd], mask [T, S] -> [T, H * Hd].

    Query head h reads key-value head h // (H / K): grouped queries, Ainslie et al. 2023.
    """
    tokens, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    shared = heads // kv_heads  # query heads per key-value head
    q = q.reshape(tokens, kv_heads, shared, head_dim).transpose(1, 2, 0, 3)  # [K, H/K, T, Hd]
    q = q.reshape(kv_heads, shared * tokens, head_dim)
    k, v = k.transpose(1, 2, 0), v.transpose(1, 0, 2)  # [K, Hd, S] and [K, S, Hd]
    scores = ((q @ k) / np.float32(math.sqrt(head_dim))).reshape(kv_heads, shared, tokens, -1)
    weights = softmax(np.where(mask, scores, np.float32(-np.inf)))  # [K, H/K, T, S]
    mixed = weights.reshape(kv_heads, shared * tokens, -1) @ v  # [K, H/K * T, Hd]
    mixed = mixed.reshape(kv_heads, shared, tokens, head_dim).transpose(2, 0, 1, 3)
    return mixed.reshape(tokens, heads * head_dim)
