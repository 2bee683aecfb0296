"""A mixture of experts by the native kernels: only chosen experts' weights are read.

Between the kernels' two calls rows are grouped: every (row, place) pair of the first expert that
some row chose, by row, then those of the next expert. What is done in between is done entry by
entry and need not know.

R rows, P places (the experts of a row), E experts, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from planish.fast.model.backend import Normed
from planish.fast.model.layers import ACTIVATIONS
from planish.fast.model.weights import PlacedExperts
from planish.fast.native.linear import (
    can_fuse,
    is_tiled,
    linear_attributes,
    tiled,
    weight_arguments,
)
from planish.fast.xla import moe as xla
from planish.reference.linear import Linear, float_weight
from planish.reference.model.config import ModelConfig
from planish.reference.model.layers import Norm

FEW_ROWS = 16  # up to here the kernel's routing is faster than XLA's product


def mixture(
    config: ModelConfig,
    weights: PlacedExperts,
    x: Normed,
    residual: jax.Array | None = None,
) -> jax.Array:
    """Each token of x [B, T, D] through its top experts, weighted by the router, + residual."""
    if not is_tiled(weights.up):
        return xla.mixture(config, weights, x, residual)
    n, shares, chosen = route_normed(config, weights, x)
    return mix_experts(config, weights, n, shares, chosen, residual)


def route_normed(
    config: ModelConfig, weights: PlacedExperts, x: Normed
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x, normalized [B, T, D], and the shares and the experts of each row [R, P]: one call for few
    rows, XLA's product for many."""
    rows, router = x.raw.reshape(-1, x.raw.shape[-1]), weights.router
    if config.moe is None or router.bias is not None or len(rows) > FEW_ROWS:
        return xla.route_normed(config, weights, x)
    how = config.moe.top_k, config.moe.normalized, x.norm
    n, shares, chosen = route_rows(rows, jnp.asarray(float_weight(router)), *how)
    return n.reshape(x.raw.shape), shares, chosen


def mix_experts(
    config: ModelConfig,
    weights: PlacedExperts,
    x: jax.Array,
    shares: jax.Array,
    chosen: jax.Array,
    residual: jax.Array | None = None,
) -> jax.Array:
    """residual + sum over each row's experts of share * expert(x): x [B, T, D], shares and chosen
    [R, P]."""
    rows, sequences = x.reshape(-1, x.shape[-1]), x.shape[0]

    def through(*layers: Linear) -> jax.Array:  # [R * P, F]
        return expert_linears(rows, chosen, layers, sequences)

    act, gate = ACTIVATIONS[config.activation], weights.gate
    if gate is None:
        inner = act(through(weights.up))
    elif config.activation == "silu" and can_fuse((gate, weights.up)):
        inner = through(gate, weights.up)
    else:
        inner = act(through(gate)) * through(weights.up)
    added = None if residual is None else residual.reshape(rows.shape)
    y = expert_sums(inner, chosen, shares, weights.down, added, sequences)
    return y.reshape(*x.shape[:-1], -1)


def route_rows(
    x: jax.Array,
    router: jax.Array,
    places: int,
    normalized: bool,
    norm: Norm | None = None,
    isa: str = "",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """norm(x) [R, K], and each row's shares and experts [R, P], for a few rows x [R, K].

    router float32 [E, K]; as the reference's route: a softmax over all, then the largest.
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

    One stacked linear, or two that quantize their input the same way:
    silu(linear_0(..)) * linear_1(..).
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
