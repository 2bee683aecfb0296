"""Attention by the native kernels: rotation, cache write and softmax in one call.

B sequences, T tokens, H query heads, G key-value heads, Hd head width, S slots.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from planish.reference.model.config import Alibi


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    positions: jax.Array,
    tables: tuple[jax.Array, jax.Array] | None,
    past: tuple[jax.Array, ...],
    kv_heads: int,
    head_dim: int,
    isa: str = "",
    *,
    interleaved: bool = False,
    divisor: float | None = None,
    window: int | None = None,
    alibi: Alibi | None = None,
    cap: float | None = None,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Rotary positions, cache write, softmax(q kt / divisor) v -> [B, T, H * Hd], and the cache.

    q [B, T, H * Hd], k and v [B, T, G * Hd], positions [B, T]; past: keys [B, G, S / 16, W, 16]
    and values [B, G, S, W], and where they are int8 codes their scales [B, G, S]; W is Hd or the
    next multiple of 16. The cache is updated in place when it is donated. The divisor is
    sqrt(Hd), if it is not given; the other options are those of fast.layers.attention.
    """
    width, rotary = past[1].shape[-1], 0 if tables is None else 2 * tables[0].shape[1]
    q, k, v = (widened(x, head_dim, width) for x in (q, k, v))
    inputs = [q, k, v, positions, *(tables or ()), *past]
    start = len(inputs) - len(past)
    mixed, *written = jax.ffi.ffi_call(
        "planish_attention",
        [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (q, *past)],
        input_output_aliases={start + i: 1 + i for i in range(len(past))},
    )(
        *inputs,
        isa=isa,
        heads=np.int64(q.shape[-1] // width),
        kv_heads=np.int64(kv_heads),
        head_dim=np.int64(width),
        rotary=np.int64(rotary),
        interleaved=interleaved,
        int8=past[0].dtype == jnp.int8,
        divisor=np.float32(divisor or math.sqrt(head_dim)),
        window=np.int64(window or 0),
        slopes=np.array(alibi.slopes if alibi else (), np.float32),
        divided=alibi is not None and alibi.divided,
        bfloat16=alibi is not None and alibi.bfloat16,
        cap=np.float32(cap or 0),
    )
    return narrowed(mixed, head_dim, width), tuple(written)


def widened(x: jax.Array, head_dim: int, width: int) -> jax.Array:
    """[B, T, heads * Hd] -> [B, T, heads * W], zeros behind each head."""
    if head_dim == width:
        return x
    heads = x.reshape(*x.shape[:2], -1, head_dim)
    heads = jnp.pad(heads, ((0, 0), (0, 0), (0, 0), (0, width - head_dim)))
    return heads.reshape(*x.shape[:2], -1)


def narrowed(x: jax.Array, head_dim: int, width: int) -> jax.Array:
    """The inverse of `widened`."""
    if head_dim == width:
        return x
    heads = x.reshape(*x.shape[:2], -1, width)[..., :head_dim]
    return heads.reshape(*x.shape[:2], -1)
