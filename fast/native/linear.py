"""Linears by the native kernels: a norm, all the linears that read it and a residual in one call.

Each call is one custom call in the compiled program. The kernels check shapes before they touch
memory (kernels/ffi/linears.cc). `isa` chooses an instruction set that has been loaded; "" is the
best one.

B sequences, T tokens, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from planish.fast.model.backend import Normed
from planish.fast.model.layers import ACTIVATIONS
from planish.fast.native.dense import dense
from planish.fast.native.norm import normalize
from planish.fast.xla import linear as xla
from planish.reference.linear import Linear
from planish.reference.model.layers import Norm
from planish.reference.quantized import QuantizedWeight


def project(x: Normed, layers: Sequence[Linear]) -> tuple[jax.Array, ...]:
    """Every linear of x [B, T, K] -> [B, T, N_i]; one call with the norm if they can be fused."""
    if can_fuse(layers):
        return linears(x.raw, layers, x.norm)
    if all(layer.scheme is None for layer in layers):
        return tuple(dense(x.raw, layer, x.norm) for layer in layers)
    n = normalize(x.raw, x.norm)
    return tuple(linear(n, layer) for layer in layers)


def gated(x: Normed, gate: Linear, up: Linear, activation: str) -> jax.Array:
    """act(gate x) * up x -> [B, T, F]; one call for silu."""
    if activation == "silu" and can_fuse((gate, up)):
        return linears(x.raw, (gate, up), x.norm, gated=True)[0]
    gate_output, inner = project(x, (gate, up))
    return ACTIVATIONS[activation](gate_output) * inner


def linear(x: jax.Array, layer: Linear, residual: jax.Array | None = None) -> jax.Array:
    """y = x Wt + b (+ residual) for x [B, T, K] -> [B, T, N]."""
    if is_tiled(layer):
        return linears(x, (layer,), residual=residual)[0]
    if layer.scheme is None:
        return dense(x, layer, residual=residual)
    return xla.linear(x, layer, residual)


def linears(
    x: jax.Array,
    layers: Sequence[Linear],
    norm: Norm | None = None,
    gated: bool = False,
    residual: jax.Array | None = None,
    isa: str = "",
) -> tuple[jax.Array, ...]:
    """y_i = linear_i(norm(x)) + residual for x [B, T, K] -> [B, T, N_i] each.

    Every weight is in tiles, and all layers quantize their input the same way, so it is normalized
    and quantized once. `gated`: two layers and one result, silu(linear_0(..)) * linear_1(..).
    """
    layers = tuple(layers)
    first = layers[0]
    arguments: list[Any] = [x]
    weight = None if norm is None else norm.weight
    bias = None if norm is None else norm.bias
    arguments += [array for array in (weight, bias) if array is not None]
    arguments += [first.activation_scale] if first.activation == "static" else []
    zero_point = first.activation_zero_point
    arguments += [] if zero_point is None else [zero_point]
    for layer in layers:
        arguments += weight_arguments(layer)
    arguments += [] if residual is None else [residual]
    shapes = [
        jax.ShapeDtypeStruct((*x.shape[:-1], tiled_weight(layer).shape[0]), jnp.float32)
        for layer in (layers[:1] if gated else layers)
    ]
    call = jax.ffi.ffi_call("planish_linears", shapes)
    return tuple(
        call(
            *arguments,
            isa=isa,
            activation=first.activation,
            norm="" if norm is None else norm.kind,
            eps=np.float32(0 if norm is None else norm.eps),
            gated=gated,
            norm_weight=weight is not None,
            norm_bias=bias is not None,
            zero_point=zero_point is not None,
            residual=residual is not None,
            sequences=np.int64(x.shape[0]),
            **linear_attributes(layers),
        )
    )


def is_tiled(layer: Linear) -> bool:
    """Whether the kernels can take a linear: its weight is quantized and in tiles."""
    return isinstance(layer.weight, QuantizedWeight) and layer.weight.layout == "tiles"


def tiled_weight(layer: Linear) -> QuantizedWeight:
    """The weight of a linear that the kernels can take."""
    if not isinstance(layer.weight, QuantizedWeight) or layer.weight.layout != "tiles":
        raise TypeError("the native kernels take tiled weights only")
    return layer.weight


def weight_arguments(layer: Linear) -> list[Any]:
    """codes, scale, zero point, offset, permutation, code sums and bias, those that exist."""
    weight = tiled_weight(layer)
    found = [weight.codes, weight.scale, weight.zero_point]
    found += [weight.offset, weight.permutation, weight.code_sums, layer.bias]
    return [array for array in found if array is not None]


def linear_attributes(layers: Sequence[Linear]) -> dict[str, np.ndarray]:
    """The attributes that describe each linear, read as LinearFields in kernels/ffi/weights.h."""
    weights = [tiled_weight(layer) for layer in layers]
    found = {
        "bits": [weight.scheme.bits for weight in weights],
        "outputs": [weight.shape[0] for weight in weights],
        "group_sizes": [weight.scheme.group_size for weight in weights],
        "zero_points": [weight.zero_point is not None for weight in weights],
        "offsets": [weight.offset is not None for weight in weights],
        "orders": [weight.permutation is not None for weight in weights],
        "code_sums": [weight.code_sums is not None for weight in weights],
        "biases": [layer.bias is not None for layer in layers],
    }
    return {name: np.array(values, np.int64) for name, values in found.items()}


def can_fuse(layers: Sequence[Linear]) -> bool:
    """Whether linears can share a call: all in tiles, with the same quantized input."""
    first = layers[0]
    return all(map(is_tiled, layers)) and all(
        layer.activation == first.activation
        and layer.activation != "static"
        and group_inputs(layer) == group_inputs(first)
        for layer in layers
        if layer is not first
    )


def group_inputs(layer: Linear) -> int:
    """The number of inputs that share a weight scale."""
    weight = tiled_weight(layer)
    return weight.shape[1] if weight.scheme.group_size == -1 else weight.scheme.group_size
