"""A norm by the native kernels, where it is not part of the call of the linears that read it.

Such norms are those of heads, of outputs, after blocks and of embeddings. XLA's sums of the same
row differ in their last bits with the number of rows. These do not: with them a row is the same in
every batch.

B sequences, T tokens, D width.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from planish.fast.model.layers import add_axes
from planish.reference.model.layers import Norm


def normalize(x: jax.Array, norm: Norm | None, isa: str = "") -> jax.Array:
    """norm(x) over the last axis of x [B, T, ..., D]; x itself if norm is None.

    A weight with several axes, of each head [H, Hd], multiplies what the kernel returns."""
    if norm is None:
        return x
    if norm.weight is not None and norm.weight.ndim > 1:
        y = normalize(x, replace(norm, weight=None, bias=None), isa)
        y = y * add_axes(norm.weight, y)
        return y if norm.bias is None else y + add_axes(norm.bias, y)
    optional = [array for array in (norm.weight, norm.bias) if array is not None]
    return jax.ffi.ffi_call("planish_norm", jax.ShapeDtypeStruct(x.shape, jnp.float32))(
        x,
        *optional,
        isa=isa,
        norm=norm.kind,
        eps=np.float32(norm.eps),
        norm_weight=norm.weight is not None,
        norm_bias=norm.bias is not None,
    )
