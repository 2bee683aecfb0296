"""The native kernels as JAX functions: what fast/linear.py and fast/layers.py do, in one call each.

A call here is one custom call in the compiled program. Shapes are checked on the other side,
before memory is touched (kernels/ffi.cc). `isa` chooses an instruction set that has been loaded;
"" is the best one.

B sequences, T tokens, R = B * T rows, K inputs, N outputs, H query heads, G key-value heads,
Hd head width, S slots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from planish.reference.linear import Linear
from planish.reference.model.config import Alibi
from planish.reference.model.layers import Norm
from planish.reference.quantized import QuantizedWeight
from planish.reference.text.sampling import Sampling


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

    Every weight is in tiles, and all layers treat their input alike: it is normalized and
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
        jax.ShapeDtypeStruct((*x.shape[:-1], tiled(layer).shape[0]), jnp.float32)
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


def is_tiled(layer: Linear) -> bool:
    """Whether the kernels can take a linear: its weight is quantized and in tiles."""
    return isinstance(layer.weight, QuantizedWeight) and layer.weight.layout == "tiles"


def tiled(layer: Linear) -> QuantizedWeight:
    """The weight of a linear that the kernels can take."""
    if not isinstance(layer.weight, QuantizedWeight) or layer.weight.layout != "tiles":
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
    scheme = weight.scheme
    return scheme.bits, weight.shape[0], scheme.group_size, int(zero), int(bias)


def alike(layers: Sequence[Linear]) -> bool:
    """Whether linears of one input can share a call: tiled, quantizing their input the same way."""
    first = layers[0]
    return all(map(is_tiled, layers)) and all(
        layer.activation == first.activation
        and layer.activation != "static"
        and group_inputs(layer) == group_inputs(first)
        for layer in layers
        if layer is not first
    )


def group_inputs(layer: Linear) -> int:
    """Inputs that share a weight scale; INT8 has one group a row."""
    weight = tiled(layer)
    return weight.shape[1] if weight.scheme.group_size == -1 else weight.scheme.group_size


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
