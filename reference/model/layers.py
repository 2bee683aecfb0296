"""The operations of a transformer block, for one sequence, in float32 (SPEC 6).

T new tokens, S slots (cached and new tokens), D model width, H query heads, K key-value heads,
Hd head width, F feed-forward width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ml_dtypes import bfloat16

from planish.reference.model.config import Alibi


@dataclass(frozen=True, kw_only=True)
class Norm:
    """One normalization over the last axis.

    `kind` is a name in NORMS; eps is added to the mean square (or the variance) before the root.
    """

    weight: np.ndarray | None  # [D]
    bias: np.ndarray | None = None  # [D]
    kind: str
    eps: float


def rms_norm(x: np.ndarray, norm: Norm) -> np.ndarray:
    """x / sqrt(mean(x^2) + eps) * weight. Zhang and Sennrich 2019, arXiv 1910.07467."""
    y: np.ndarray = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(norm.eps))
    return y if norm.weight is None else y * norm.weight


def layer_norm(x: np.ndarray, norm: Norm) -> np.ndarray:
    """(x - mean) / sqrt(variance + eps) * weight + bias. Ba et al. 2016, arXiv 1607.06450."""
    centred = x - np.mean(x, axis=-1, keepdims=True)
    variance = np.mean(centred * centred, axis=-1, keepdims=True)
    y: np.ndarray = centred / np.sqrt(variance + np.float32(norm.eps))
    y = y if norm.weight is None else y * norm.weight
    return y if norm.bias is None else y + norm.bias


NORMS = {"rms_norm": rms_norm, "layer_norm": layer_norm}


def normalize(x: np.ndarray, norm: Norm | None) -> np.ndarray:
    """norm(x) over the last axis, or x itself if the model has no norm here."""
    return x if norm is None else NORMS[norm.kind](x, norm)


def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0)."""
    y: np.ndarray = np.maximum(x, 0)
    return y


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x), written so that no exponential overflows."""
    e = np.exp(-np.abs(x))
    y: np.ndarray = x * np.where(x >= 0, 1 / (1 + e), e / (1 + e))
    return y


def gelu(x: np.ndarray) -> np.ndarray:
    """x/2 (1 + erf(x / sqrt 2)). Hendrycks and Gimpel 2016, arXiv 1606.08415."""
    erf = np.vectorize(math.erf, otypes=[np.float32])
    y: np.ndarray = np.float32(0.5) * x * (1 + erf(x / np.float32(math.sqrt(2))))
    return y


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """x/2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))): gelu_new, gelu_fast, gelu_pytorch_tanh."""
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * (x * x * x))
    y: np.ndarray = np.float32(0.5) * x * (1 + np.tanh(inner))
    return y


ACTIVATIONS = {"relu": relu, "silu": silu, "gelu": gelu, "gelu_tanh": gelu_tanh}


def soft_cap(x: np.ndarray, cap: float | None) -> np.ndarray:
    """cap * tanh(x / cap), which keeps x between -cap and cap; x itself where cap is None."""
    return x if cap is None else np.float32(cap) * np.tanh(x / np.float32(cap))


def causal_mask(positions: np.ndarray, slots: int, window: int | None = None) -> np.ndarray:
    """Which of the slots 0..S-1 each token may attend to: its own and those before it, bool [T, S].

    With a window, only the last `window` of those (sliding window attention).
    """
    distance: np.ndarray = positions[:, None] - np.arange(slots)[None, :]  # [T, S]
    return (distance >= 0) & (distance < (window or slots))


def alibi_biases(alibi: Alibi, positions: np.ndarray, slots: int) -> np.ndarray:
    """slope * (slot - position) for each head [H, T, S]; with bfloat16, slope * slot [H, 1, S]."""
    slopes = np.array(alibi.slopes, np.float32)[:, None, None]  # [H, 1, 1]
    if alibi.bfloat16:
        slot = np.arange(slots).astype(bfloat16)[None, None, :]
        rounded: np.ndarray = (slopes.astype(bfloat16) * slot).astype(np.float32)
        return rounded
    biases: np.ndarray = slopes * (np.arange(slots) - positions[:, None]).astype(np.float32)
    return biases


def softmax(x: np.ndarray) -> np.ndarray:
    """exp(x - max) / sum, over the last axis."""
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    p: np.ndarray = e / np.sum(e, axis=-1, keepdims=True)
    return p


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray,
    divisor: float,
    alibi: Alibi | None = None,
    cap: float | None = None,
) -> np.ndarray:
    """softmax(q kt / divisor) v for q [T, H, Hd], k and v [S, K, Hd], mask [T, S] -> [T, H * Hd].

    Query head h reads key-value head h // (H / K) (grouped-query attention, Ainslie et al. 2023,
    arXiv 2305.13245). The tokens are the last T of the S slots. Scores may have linear biases and
    a soft cap.
    """
    tokens, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    shared = heads // kv_heads  # query heads per key-value head
    q = q.reshape(tokens, kv_heads, shared, head_dim).transpose(1, 2, 0, 3)  # [K, H/K, T, Hd]
    q = q.reshape(kv_heads, shared * tokens, head_dim)  # [K, H/K * T, Hd]
    k, v = k.transpose(1, 2, 0), v.transpose(1, 0, 2)  # [K, Hd, S] and [K, S, Hd]
    scores = (q @ k).reshape(kv_heads, shared, tokens, -1)  # [K, H/K, T, S]
    scores = soft_cap(scale_and_bias(scores, divisor, alibi), cap)
    weights = softmax(np.where(mask, scores, np.float32(-np.inf)))  # [K, H/K, T, S]
    context: np.ndarray = weights.reshape(kv_heads, shared * tokens, -1) @ v  # [K, H/K * T, Hd]
    context = context.reshape(kv_heads, shared, tokens, head_dim).transpose(2, 0, 1, 3)
    return context.reshape(tokens, heads * head_dim)


def scale_and_bias(scores: np.ndarray, divisor: float, alibi: Alibi | None) -> np.ndarray:
    """scores / divisor + biases, or (scores + biases) / divisor: [K, H/K, T, S]."""
    scaled: np.ndarray
    if alibi is None:
        scaled = scores / np.float32(divisor)
        return scaled
    tokens, slots = scores.shape[2:]
    biases = alibi_biases(alibi, np.arange(slots - tokens, slots), slots)
    biases = biases.reshape(*scores.shape[:2], -1, slots)
    if alibi.divided:
        scaled = (scores + biases) / np.float32(divisor)
    else:
        scaled = scores / np.float32(divisor) + biases
    return scaled
