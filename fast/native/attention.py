"""Attention by the native kernels: rotation, cache write and softmax in one call.

B sequences, T tokens, H query heads, G key-value heads, Hd head width, S slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from planish.fast.model.backend import QKV, AttentionConfig, Positions
from planish.fast.native.cache import CodedSlots, TiledSlots
from planish.fast.xla import attention as xla
from planish.fast.xla.cache import Slots
from planish.reference.model.attention import AttentionScales


def cached_attention(
    qkv: QKV,
    positions: Positions,
    past: TiledSlots | CodedSlots | Slots,
    config: AttentionConfig,
    scales: AttentionScales | None = None,
    isa: str = "",
) -> tuple[jax.Array, TiledSlots | CodedSlots | Slots]:
    """Rotary positions, cache write, softmax(q kt / divisor) v -> [B, T, H * Hd], and the slots.

    q [B, T, H * Hd], k and v [B, T, G * Hd]. The slots are updated in place where they are donated.
    scales: calibrated ones of INT8 attention. XLA computes attention over its own slots, whose
    heads are too wide for the kernels, or which are codes for float attention by fixed scales.
    """
    if isinstance(past, Slots):
        return xla.cached_attention(qkv, positions, past, config, scales)
    width, tables = past.width, rotary_tables(positions, config)
    q, k, v = (pad_heads(x, config.head_dim, width) for x in qkv)
    fixed = () if scales is None else (join_scales(scales),)
    paging = () if positions.pages is None else (positions.rows, positions.pages)
    inputs = [q, k, v, positions.index, *paging, *tables, *fixed, *past.arrays]
    start = len(inputs) - len(past.arrays)
    context, *written = jax.ffi.ffi_call(
        "planish_attention",
        [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (q, *past.arrays)],
        input_output_aliases={start + i: 1 + i for i in range(len(past.arrays))},
    )(
        *inputs,
        isa=isa,
        fixed=scales is not None,
        paged=bool(paging),
        **attention_attributes(q, past, config, tables),
    )
    return unpad_heads(context, config.head_dim, width), past.replace_arrays(written)


def rotary_tables(positions: Positions, config: AttentionConfig) -> tuple[jax.Array, ...]:
    """cos and sin [S, dim / 2] of every slot; empty if queries and keys are not rotated."""
    return () if config.table is None else positions.tables[config.table]


def join_scales(scales: AttentionScales) -> jax.Array:
    """The calibrated scales of q, k and v -> float32 [3]."""
    parts = [jnp.asarray(scale, jnp.float32).reshape(1) for scale in (scales.q, scales.k, scales.v)]
    return jnp.concatenate(parts)


def attention_attributes(
    q: jax.Array,
    past: TiledSlots | CodedSlots,
    config: AttentionConfig,
    tables: Sequence[jax.Array],
) -> dict[str, Any]:
    """The attributes of the kernel's call."""
    alibi, width = config.alibi, past.width
    return {
        "heads": np.int64(q.shape[-1] // width),
        "kv_heads": np.int64(config.kv_heads),
        "head_dim": np.int64(width),
        "rotary": np.int64(2 * tables[0].shape[1] if tables else 0),
        "interleaved": config.rope is not None and config.rope.interleaved,
        "int8": past.keys.dtype == jnp.int8,
        "codes": isinstance(past, CodedSlots),
        "divisor": np.float32(config.divisor),
        "window": np.int64(config.window or 0),
        "ring": np.int64(past.ring or 0),
        "slopes": np.array(alibi.slopes if alibi else (), np.float32),
        "divided": alibi is not None and alibi.divided,
        "bfloat16": alibi is not None and alibi.bfloat16,
        "cap": np.float32(config.cap or 0),
    }


def pad_heads(x: jax.Array, head_dim: int, width: int) -> jax.Array:
    """[B, T, heads * Hd] -> [B, T, heads * W], each head padded with zeros."""
    if head_dim == width:
        return x
    heads = x.reshape(*x.shape[:2], -1, head_dim)
    heads = jnp.pad(heads, ((0, 0), (0, 0), (0, 0), (0, width - head_dim)))
    return heads.reshape(*x.shape[:2], -1)


def unpad_heads(x: jax.Array, head_dim: int, width: int) -> jax.Array:
    """[B, T, heads * W] -> [B, T, heads * Hd], the inverse of pad_heads."""
    if head_dim == width:
        return x
    heads = x.reshape(*x.shape[:2], -1, width)[..., :head_dim]
    return heads.reshape(*x.shape[:2], -1)
