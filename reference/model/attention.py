"""INT8 attention: SmoothQuant's two batched products, q kt and p v, on integer codes (SPEC 3).

    dynamic   a scale for each token and head of q, k and v; p has one for each query and head
    static    one scale for each of q, k and v, calibrated; p has 1 / 127

Scores, softmax and everything that adds to them stay in float32. Source: Xiao et al. 2023, arXiv
2211.10438, figure 6. Its kernels (https://github.com/Guangxuan-Xiao/torch-int) quantize the
normalized probabilities; here they are quantized before the division by their sum, as in
SageAttention (arXiv 2410.02367) and INT-FlashAttention (arXiv 2409.16997), so that the largest of
each row has code 127.

T new tokens, S slots (cached and new tokens), H query heads, K key-value heads, Hd head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planish.reference.grids import INT8_MAX, int8_codes, int8_scale, require_finite
from planish.reference.model.config import Alibi
from planish.reference.model.layers import scale_and_bias, soft_cap

STATIC_P_SCALE = np.full((1, 1, 1, 1), 1 / INT8_MAX, np.float32)


@dataclass(frozen=True, kw_only=True)
class AttentionScales:
    """The calibrated scales of one layer's queries, keys (both rotated) and values, float32 [1]."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray


@dataclass(frozen=True)
class HeadCodes:
    """Queries, keys or values as codes int8 [S, K, Hd], with scales.

    float32 [S, K, 1], one for each token and head; or a calibrated one [1, 1, 1], if `static`.
    """

    codes: np.ndarray
    scale: np.ndarray
    static: bool = False

    def __len__(self) -> int:
        return len(self.codes)


Heads = np.ndarray | HeadCodes  # [S, K, Hd], as the cache keeps them


def quantize_heads(x: np.ndarray, scale: np.ndarray | None = None) -> HeadCodes:
    """Codes of x [S, K, Hd] on the grid of SPEC 2; without a scale [1], one per token and head."""
    if scale is None:
        scale = int8_scale(np.abs(x).max(axis=-1, keepdims=True))  # [S, K, 1]
        return HeadCodes(int8_codes(x, scale), scale)
    require_finite(x, "activations")  # their codes would be numbers, and so would the scale
    scale = np.asarray(scale, np.float32).reshape(1, 1, 1)
    return HeadCodes(int8_codes(x, scale), scale, static=True)


def dequantize_heads(x: Heads) -> np.ndarray:
    """codes * scale, or floats as they are: [S, K, Hd]."""
    if not isinstance(x, HeadCodes):
        return x
    floats: np.ndarray = x.codes.astype(np.float32) * x.scale
    return floats


def first_heads(x: Heads, count: int) -> Heads:
    """The first `count` slots."""
    if not isinstance(x, HeadCodes):
        return x[:count]
    return HeadCodes(x.codes[:count], x.scale if x.static else x.scale[:count], x.static)


def append_heads(past: Heads, new: Heads) -> Heads:
    """The slots of the past and then the new ones; an empty past may be in either form."""
    if len(past) == 0:
        return new
    if isinstance(past, HeadCodes) and isinstance(new, HeadCodes):
        codes = np.concatenate([past.codes, new.codes])
        scale = past.scale if past.static else np.concatenate([past.scale, new.scale])
        return HeadCodes(codes, scale, past.static)
    if isinstance(past, HeadCodes) or isinstance(new, HeadCodes):
        raise TypeError("the cache and the new keys or values must both be codes, or both floats")
    return np.concatenate([past, new])


def int8_attention(
    q: HeadCodes,
    k: HeadCodes,
    v: HeadCodes,
    mask: np.ndarray,
    divisor: float,
    alibi: Alibi | None = None,
    cap: float | None = None,
) -> np.ndarray:
    """softmax(q kt / divisor) v on codes: q [T, H, Hd], k and v [S, K, Hd] -> [T, H * Hd].

    context = (f32(sum_s p8 v8) * p_scale) / total, with w and p_scale of `scale_weights`, p8 =
    rint(w / p_scale) and total = sum_s e; the static form has a factor v_scale before the division.
    q, k and v have static scales, or none has. Sums are exact for S <= 133,144.
    """
    tokens, heads, head_dim = q.codes.shape
    e = exponentials(q, k, mask, divisor, alibi, cap)  # [K, H/K, T, S]
    w, p_scale = scale_weights(e, v)
    sums = multiply_codes(int8_codes(w, p_scale), v.codes.transpose(1, 0, 2)[:, None])
    scaled = sums * p_scale * v.scale if v.static else sums * p_scale  # [K, H/K, T, Hd]
    context: np.ndarray = scaled / np.sum(e, axis=-1, keepdims=True)
    return context.transpose(2, 0, 1, 3).reshape(tokens, heads * head_dim)


def exponentials(
    q: HeadCodes,
    k: HeadCodes,
    mask: np.ndarray,
    divisor: float,
    alibi: Alibi | None = None,
    cap: float | None = None,
) -> np.ndarray:
    """exp(score - max_s score), 0 where masked: [K, H/K, T, S]. The largest of each row is 1.

    score = ((f32(sum_d q8 k8) * q_scale) * k_scale) / divisor, then biases, cap and mask as in
    layers.attention.
    """
    kv_heads = k.codes.shape[1]
    q_scale = q.scale if q.static else group_heads(q.scale, kv_heads)  # [K, H/K, T, 1]
    k_scale = k.scale.transpose(1, 2, 0)[:, None]  # [K, 1, 1, S]
    grouped = group_heads(q.codes, kv_heads)  # [K, H/K, T, Hd]
    scores = multiply_codes(grouped, k.codes.transpose(1, 2, 0)[:, None]) * q_scale * k_scale
    scores = soft_cap(scale_and_bias(scores, divisor, alibi), cap)
    scores = np.where(mask, scores, np.float32(-np.inf))
    e: np.ndarray = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
    return e


def scale_weights(e: np.ndarray, v: HeadCodes) -> tuple[np.ndarray, np.ndarray]:
    """The weights w [K, H/K, T, S] that become codes, and p_scale [K, H/K, T, 1].

    dynamic   a value's scale belongs to its slot, so it moves into the weight: w = e * v_scale,
              p_scale = max_s w / 127
    static    w = e, p_scale = 1 / 127
    """
    if v.static:
        return e, STATIC_P_SCALE
    w = e * v.scale.transpose(1, 2, 0)[:, None]  # [K, 1, 1, S]
    return w, np.max(w, axis=-1, keepdims=True) / np.float32(INT8_MAX)


def group_heads(x: np.ndarray, kv_heads: int) -> np.ndarray:
    """[T, H, ...] -> [K, H/K, T, ...]: the query heads of each key-value head."""
    grouped: np.ndarray = x.reshape(len(x), kv_heads, -1, x.shape[-1]).transpose(1, 2, 0, 3)
    return grouped


def multiply_codes(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a [..., M, N] @ b [..., N, P] of codes: the exact integers, rounded to float32."""
    product: np.ndarray = (a.astype(np.float64) @ b.astype(np.float64)).astype(np.float32)
    return product
