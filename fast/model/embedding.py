"""Rows of an embedding, as reference/model/embedding.py defines them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from planish.reference.grids import SYMMETRIC_ZERO
from planish.reference.quantized import QuantizedWeight


def embedding_rows(embed: Any, tokens: jax.Array) -> jax.Array:
    """Rows [B, T, E] float32 of an embedding [V, E], an array or codes, for tokens [B, T].

    XLA may fuse the product with a scale and the sum with an offset: an ulp of the larger.
    """
    if not isinstance(embed, QuantizedWeight):
        return jnp.asarray(embed[tokens])
    cols = embed.shape[1]
    codes = jnp.asarray(embed.codes)[tokens]
    if embed.scheme.bits == 4:  # the even input is in the low bits
        codes = jnp.stack([codes & 15, codes >> 4], axis=-1).reshape(*tokens.shape, -1)[..., :cols]

    def expand(values: Any) -> jax.Array:  # [V, G] -> [B, T, E]
        rows = jnp.asarray(values)[tokens].astype(jnp.float32)
        size = embed.scheme.group_size
        return rows if size == -1 else jnp.repeat(rows, size, axis=-1)[..., :cols]

    q = codes.astype(jnp.float32)
    if embed.zero_point is not None:
        q = q - expand(embed.zero_point)
    elif embed.scheme.bits == 4 and embed.offset is None:
        q = q - SYMMETRIC_ZERO
    w = q * expand(embed.scale)
    return w if embed.offset is None else w + expand(embed.offset)
