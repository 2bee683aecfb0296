"""A mixture of experts by the native kernels: only the weights of chosen experts are read.

Between the kernels' two calls rows are grouped by expert: the rows that chose the lowest expert id,
in their order, then those of the next id. The activation between the calls works on single entries,
so it does not depend on that order. Source: Shazeer et al. 2017, arXiv 1701.06538.

B sequences, T tokens, R = B * T rows, E experts, K inputs, N outputs, F width between the linears.
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
    tiled_weight,
    weight_arguments,
)
from planish.fast.xla import moe as xla
from planish.reference.linear import Linear, float_weight
from planish.reference.model.config import ModelConfig
from planish.reference.model.layers import Norm


def mixture(
    config: ModelConfig,
    weights: PlacedExperts,
    x: Normed,
    residual: jax.Array | None = None,
) -> jax.Array:
    """Each token of x [B, T, D] through its top experts, weighted by the router, + residual."""
    if not is_tiled(weights.up):
        return xla.mixture(config, weights, x, residual)
    n, routing_weights, expert_ids = route_normed(config, weights, x)
    return mix_experts(config, weights, n, routing_weights, expert_ids, residual)


def route_normed(
    config: ModelConfig, weights: PlacedExperts, x: Normed
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x, normalized [B, T, D], and the routing weights and expert ids of each row [R, top_k]."""
    rows, router = x.raw.reshape(-1, x.raw.shape[-1]), weights.router
    if config.moe is None or router.bias is not None:
        return xla.route_normed(config, weights, x)
    how = config.moe.top_k, config.moe.normalized, x.norm
    n, routing_weights, expert_ids = route_rows(rows, jnp.asarray(float_weight(router)), *how)
    return n.reshape(x.raw.shape), routing_weights, expert_ids


def mix_experts(
    config: ModelConfig,
    weights: PlacedExperts,
    x: jax.Array,
    routing_weights: jax.Array,
    expert_ids: jax.Array,
    residual: jax.Array | None = None,
) -> jax.Array:
    """residual + the sum of routing_weight * expert(x) over each row's experts, for x [B, T, D].

    routing_weights, expert_ids [R, top_k].
    """
    rows, sequences = x.reshape(-1, x.shape[-1]), x.shape[0]
    inner = expert_inner(config, weights, rows, expert_ids, sequences)
    added = None if residual is None else residual.reshape(rows.shape)
    y = expert_sums(inner, expert_ids, routing_weights, weights.down, added, sequences)
    return y.reshape(*x.shape[:-1], -1)


def expert_inner(
    config: ModelConfig,
    weights: PlacedExperts,
    rows: jax.Array,
    expert_ids: jax.Array,
    sequences: int,
) -> jax.Array:
    """The input of `down` for each row's experts: rows [R, D] -> [R * top_k, F], by expert."""

    def project(*layers: Linear) -> jax.Array:  # [R * top_k, F]
        return expert_linears(rows, expert_ids, layers, sequences)

    act, gate = ACTIVATIONS[config.activation], weights.gate
    if gate is None:
        return act(project(weights.up))
    if config.activation == "silu" and can_fuse((gate, weights.up)):
        return project(gate, weights.up)
    return act(project(gate)) * project(weights.up)


def route_rows(
    x: jax.Array,
    router: jax.Array,
    top_k: int,
    normalized: bool,
    norm: Norm | None = None,
    isa: str = "",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """norm(x) [R, K], and each row's routing weights and expert ids [R, top_k], for x [R, K].

    router float32 [E, K]. As the reference's `route`: a softmax over all experts, then the largest.
    """
    weight, bias = (None, None) if norm is None else (norm.weight, norm.bias)
    shape = x.shape[0], top_k
    shapes = [
        jax.ShapeDtypeStruct(x.shape, jnp.float32),
        jax.ShapeDtypeStruct(shape, jnp.float32),
        jax.ShapeDtypeStruct(shape, jnp.int32),
    ]
    n, routing_weights, expert_ids = jax.ffi.ffi_call("planish_route", shapes)(
        x,
        *(array for array in (weight, bias) if array is not None),
        router,
        isa=isa,
        norm="" if norm is None else norm.kind,
        eps=np.float32(0 if norm is None else norm.eps),
        norm_weight=weight is not None,
        norm_bias=bias is not None,
        normalized=normalized,
    )
    return n, routing_weights, expert_ids


def expert_linears(
    x: jax.Array, expert_ids: jax.Array, layers: Sequence[Linear], sequences: int, isa: str = ""
) -> jax.Array:
    """The linears of each row's experts: x [R, K], expert_ids int32 [R, top_k] -> [R * top_k, N].

    One stacked linear, or two that quantize their input the same way: silu(gate x) * up x. The
    result is grouped by expert.
    """
    rows = x.shape[0] * expert_ids.shape[1]
    return _call_experts(x, expert_ids, layers, (), rows, sequences, isa)


def expert_sums(
    x: jax.Array,
    expert_ids: jax.Array,
    routing_weights: jax.Array,
    layer: Linear,
    residual: jax.Array | None,
    sequences: int,
    isa: str = "",
) -> jax.Array:
    """residual + the weighted sum of a linear of each row's experts -> [R, N].

    x [R * top_k, K], grouped by expert; routing_weights [R, top_k].
    """
    last = (routing_weights,) if residual is None else (routing_weights, residual)
    return _call_experts(x, expert_ids, (layer,), last, expert_ids.shape[0], sequences, isa)


def _call_experts(
    x: jax.Array,
    expert_ids: jax.Array,
    layers: Sequence[Linear],
    last: Sequence[jax.Array],
    rows: int,
    sequences: int,
    isa: str,
) -> jax.Array:
    """One call of the kernels -> [rows, N].

    last: routing weights and perhaps a residual; with them the call sums up each row's experts.
    """
    first = layers[0]
    arguments: list[Any] = [x, expert_ids]
    arguments += [first.activation_scale] if first.activation == "static" else []
    for layer in layers:
        arguments += weight_arguments(layer)
    shape = jax.ShapeDtypeStruct((rows, tiled_weight(first).shape[0]), jnp.float32)
    return jax.ffi.ffi_call("planish_experts", shape)(
        *arguments,
        *last,
        isa=isa,
        activation=first.activation,
        last=len(last) > 0,
        residual=len(last) > 1,
        sequences=np.int64(sequences),
        experts=np.int64(tiled_weight(first).codes.shape[0]),
        **linear_attributes(layers),
    )
