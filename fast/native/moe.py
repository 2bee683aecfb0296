"""The kernels of a mixture of experts as JAX functions: only chosen experts' weights are read.

Between the two calls rows are grouped: every (row, place) pair of the first expert that some row
chose, by row, then those of the next expert. What is done in between is done entry by entry and
need not know.

R rows, P places (the experts of a row), E experts, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from planish.fast.native.linear import linear_attributes, tiled, weight_arguments
from planish.reference.linear import Linear
from planish.reference.model.layers import Norm


def route(
    x: jax.Array,
    router: jax.Array,
    places: int,
    normalized: bool,
    norm: Norm | None = None,
    isa: str = "",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """norm(x) [R, K], and each row's shares and experts [R, P], for a few rows x [R, K].

    router float32 [E, K]; as reference.model.route: a softmax over all, then the largest.
    """
    found = (None, None) if norm is None else (norm.weight, norm.bias)
    shape = x.shape[0], places
    shapes = [
        jax.ShapeDtypeStruct(x.shape, jnp.float32),
        jax.ShapeDtypeStruct(shape, jnp.float32),
        jax.ShapeDtypeStruct(shape, jnp.int32),
    ]
    n, shares, chosen = jax.ffi.ffi_call("planish_route", shapes)(
        x,
        *(array for array in found if array is not None),
        router,
        isa=isa,
        norm="" if norm is None else norm.kind,
        eps=np.float32(0 if norm is None else norm.eps),
        norm_weight=found[0] is not None,
        norm_bias=found[1] is not None,
        normalized=normalized,
    )
    return n, shares, chosen


def expert_linears(
    x: jax.Array, chosen: jax.Array, layers: Sequence[Linear], sequences: int, isa: str = ""
) -> jax.Array:
    """Each row through the linear of its experts: x [R, K], chosen int32 [R, P] -> [R * P, N].

    One stacked linear; or two that treat their input alike: silu(linear_0(..)) * linear_1(..).
    """
    rows = x.shape[0] * chosen.shape[1]
    return _call(x, chosen, layers, (), rows, sequences, isa)


def expert_sums(
    x: jax.Array,
    chosen: jax.Array,
    shares: jax.Array,
    layer: Linear,
    residual: jax.Array | None,
    sequences: int,
    isa: str = "",
) -> jax.Array:
    """residual + each row's experts by their shares: x [R * P, K], shares [R, P] -> [R, N]."""
    last = (shares,) if residual is None else (shares, residual)
    return _call(x, chosen, (layer,), last, chosen.shape[0], sequences, isa)


def _call(
    x: jax.Array,
    chosen: jax.Array,
    layers: Sequence[Linear],
    last: Sequence[jax.Array],
    rows: int,
    sequences: int,
    isa: str,
) -> jax.Array:
    first = layers[0]
    arguments: list[Any] = [x, chosen]
    arguments += [first.activation_scale] if first.activation == "static" else []
    for layer in layers:
        arguments += weight_arguments(layer)
    shape = jax.ShapeDtypeStruct((rows, tiled(first).shape[0]), jnp.float32)
    return jax.ffi.ffi_call("planish_experts", shape)(
        *arguments,
        *last,
        isa=isa,
        activation=first.activation,
        last=len(last) > 0,
        residual=len(last) > 1,
        sequences=np.int64(sequences),
        experts=np.int64(tiled(first).codes.shape[0]),
        **linear_attributes(layers),
    )
