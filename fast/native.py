"""The native kernels as JAX functions: what fast/linear.py and fast/layers.py do, in one call each.

A call here is one custom call in the compiled program. Shapes are checked on the other side,
before memory is touched (kernels/ffi.cc). `isa` chooses an instruction set that has been loaded;
"" is the best one.

B sequences, T tokens, R = B * T rows, K inputs, N outputs, H query heads, G key-value heads,
Hd head width, S slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reference.layers import Norm
from reference.linear import Linear
from reference.sampling import Sampling
from reference.tiles import TiledWeight


def linears(
    x: jax.Array,
    layers: Sequence[Linear],
    norm: Norm | None = None,
    norm_kind: str = "",
    eps: float = 0.0,
    gated: bool = False,
    residual: jax.Array | None = None,
    isa: str = "",
) -> tuple[jax.Array, ...]:
    """y_i = linear_i(norm(x)) + residual for x [B, T, K] -> [B, T, N_i] each.

    Every layer holds a TiledWeight, and all treat their input alike: it is normalized and
    quantized once. `gated`: two layers, and the one result silu(linear_0(..)) * linear_1(..).
    """
    layers = tuple(layers)
    first = layers[0]
    arguments: list[Any] = [x]
    weight = None if norm is None else norm.weight
    bias = None if norm is None else norm.bias
    arguments += [array for array in (weight, bias) if array is not None]
    arguments += [first.activation_scale] if first.activation == "static" else []
    for layer in layers:
        arguments += weight_arguments(layer)
    arguments += [] if residual is None else [residual]
    shapes = [
        jax.ShapeDtypeStruct((*x.shape[:-1], tiled(layer).out_features), jnp.float32)
        for layer in (layers[:1] if gated else layers)
    ]
    call = jax.ffi.ffi_call("planish_linears", shapes)
    return tuple(
        call(
            *arguments,
            isa=isa,
            activation=first.activation,
            norm=norm_kind if norm is not None else "",
            eps=np.float32(eps),
            gated=gated,
            norm_weight=weight is not None,
            norm_bias=bias is not None,
            residual=residual is not None,
            sequences=np.int64(x.shape[0]),
            linears=np.array([fields(layer) for layer in layers], np.int64).ravel(),
        )
    )


def tiled(layer: Linear) -> TiledWeight:
    """The weight of a linear that the kernels can take."""
    if not isinstance(layer.weight, TiledWeight):
        raise TypeError("the native kernels take tiled weights only")
    return layer.weight


def weight_arguments(layer: Linear) -> list[Any]:
    """codes, scale, zero point, bias: those that are there."""
    weight = tiled(layer)
    found = [weight.codes, weight.scale, weight.zero_point, layer.bias]
    return [array for array in found if array is not None]


def fields(layer: Linear) -> tuple[int, ...]:
    """bits, outputs, group_size, has a zero point, has a bias: as kernels/ffi.cc reads them."""
    weight = tiled(layer)
    zero, bias = weight.zero_point is not None, layer.bias is not None
    return weight.bits, weight.out_features, weight.group_size, int(zero), int(bias)


def alike(layers: Sequence[Linear]) -> bool:
    """Whether linears of one input can share a call: tiled, quantizing their input the same way."""
    first = layers[0]
    return all(isinstance(layer.weight, TiledWeight) for layer in layers) and all(
        layer.activation == first.activation
        and layer.activation != "static"
        and group_inputs(layer) == group_inputs(first)
        for layer in layers
        if layer is not first
    )


def group_inputs(layer: Linear) -> int:
    """Inputs that share a weight scale; INT8 has one group a row."""
    weight = tiled(layer)
    if weight.bits == 8 or weight.group_size == -1:
        return weight.in_features
    return weight.group_size


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
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Rotary positions, cache write, softmax(q kt / sqrt(Hd)) v -> [B, T, H * Hd], and the cache.

    q [B, T, H * Hd], k and v [B, T, G * Hd], positions [B, T]; past: keys [B, G, S / 16, Hd, 16]
    and values [B, G, S, Hd], and where they are int8 codes their scales [B, G, S]. The cache is
    updated in place when it is donated.
    """
    rotary = 0 if tables is None else 2 * tables[0].shape[1]
    inputs = [q, k, v, positions, *(tables or ()), *past]
    start = len(inputs) - len(past)
    mixed, *written = jax.ffi.ffi_call(
        "planish_attention",
        [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (q, *past)],
        input_output_aliases={start + i: 1 + i for i in range(len(past))},
    )(
        *inputs,
        isa=isa,
        heads=np.int64(q.shape[-1] // head_dim),
        kv_heads=np.int64(kv_heads),
        head_dim=np.int64(head_dim),
        rotary=np.int64(rotary),
        int8=past[0].dtype == jnp.int8,
    )
    return mixed, tuple(written)


def sample(logits: jax.Array, settings: jax.Array, uniform: jax.Array, isa: str = "") -> jax.Array:
    """The next token of each row of logits [B, V] -> int32 [B]; -1 where they are not numbers.

    settings int32 [5]: sampling_settings(); uniform int32 [B, 2]: as_int32() of float64 [B].
    """
    shape = jax.ShapeDtypeStruct(logits.shape[:1], jnp.int32)
    return jax.ffi.ffi_call("planish_sample", shape)(logits, settings, uniform, isa=isa)


def limits(x: jax.Array, rounds: jax.Array, isa: str = "") -> jax.Array:
    """Read x uint8 [N] once with every thread, then multiply bytes in registers, 64 * rounds[0]
    times 2048 operations in all: what compare/speed.py times. rounds int32 [1] -> int32 [1]."""
    shape = jax.ShapeDtypeStruct((1,), jnp.int32)
    return jax.ffi.ffi_call("planish_limits", shape, has_side_effect=True)(x, rounds, isa=isa)


def sampling_settings(sampling: Sampling) -> np.ndarray:
    """Temperature, top_p and top_k as the kernel reads them."""
    floats = as_int32(np.array([sampling.temperature, sampling.top_p]))
    return np.append(floats.ravel(), np.int32(sampling.top_k))


def as_int32(x: np.ndarray) -> np.ndarray:
    """float64 [N] -> int32 [N, 2]: float64 arrays cannot pass through 32-bit JAX."""
    return np.ascontiguousarray(x, np.float64).view(np.int32).reshape(*x.shape, 2)
