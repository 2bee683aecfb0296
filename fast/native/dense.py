"""Linears with float weights by the native kernels, each with the norm that it reads.

XLA's products of the same row differ in their last bits with the number of rows. These do not: with
them a float lm_head gives a row the same logits in every batch (kernels/rows/dense.h).

B sequences, T tokens, K inputs, N outputs.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from planish.reference.linear import Linear
from planish.reference.model.layers import Norm


def dense(
    x: jax.Array,
    layer: Linear,
    norm: Norm | None = None,
    residual: jax.Array | None = None,
    isa: str = "",
) -> jax.Array:
    """y = norm(x) Wt + b (+ residual) for x [B, T, K] and a float weight [N, K] -> [B, T, N]."""
    weight: Any = layer.weight
    scale, shift = (None, None) if norm is None else (norm.weight, norm.bias)
    optional = [scale, shift, weight, layer.bias, residual]
    arguments = [x, *(array for array in optional if array is not None)]
    shape = jax.ShapeDtypeStruct((*x.shape[:-1], weight.shape[0]), jnp.float32)
    return jax.ffi.ffi_call("planish_dense", shape)(
        *arguments,
        isa=isa,
        norm="" if norm is None else norm.kind,
        eps=np.float32(0 if norm is None else norm.eps),
        norm_weight=scale is not None,
        norm_bias=shift is not None,
        bias=layer.bias is not None,
        residual=residual is not None,
    )
