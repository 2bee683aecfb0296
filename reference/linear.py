"""One linear layer, whatever its weight is: y = x Wt + b, in floats or in integers (SPEC 2 and 4).

A quantized weight is data, not a class hierarchy: `QuantizedWeight` knows its grid, `Linear`
says how the activations are to be treated, and `linear` looks at both.

    weights   activations                        name in the recipes
    float     float                              float
    INT8      float                              W8A16
    INT8      INT8 per_token, per_tensor, static W8A8, O1, O2, O3, naive
    INT4      float                              W4A16
    INT4      INT8 per_group or per_token        W4A8

T tokens, K inputs, N outputs, G groups. Integer sums are int32, exact for K <= 133,144; here
they go through a float64 matrix product, which is exact too and ten times faster than NumPy's
integer one. The float operations behind a sum are rounded one by one, in the order written.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planish.reference.grids import (
    SYMMETRIC_ZERO,
    expand_groups,
    grouped,
    int8_codes,
    int8_scale,
    num_groups,
    quantize_int8,
    require_finite,
)
from planish.reference.packing import unpack_nibbles

ACTIVATIONS = ("float", "per_token", "per_tensor", "static", "per_group")


@dataclass(frozen=True)
class QuantizedWeight:
    """Codes on a grid of SPEC 2 (bits = 8) or SPEC 4 (bits = 4).

    codes:      int8 [N, K], or nibbles packed into uint8 [N, ceil(K / 2)] (packing.py)
    scale:      float32 [N, 1] (per_channel) or [1, 1] (per_tensor); INT4: float16/32 [N, G]
    zero_point: INT4: uint8 [N, G], or None where it is 8 everywhere (symmetric); INT8: None
    """

    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray | None
    bits: int
    in_features: int
    group_size: int = -1

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[-2], self.in_features


@dataclass(frozen=True)
class TiledWeight:
    """A QuantizedWeight whose codes lie in tiles (packing.py).

    codes:      INT8: int8 [ceil(N/16), ceil(K/4), 16, 4];
                INT4: uint8 [ceil(N/16), ceil(K/8), 16, 4]
    scale:      INT8: float32 [N, 1] or [1, 1], as in QuantizedWeight;
                INT4: float16 or float32 [ceil(N/16), G, 16]
    zero_point: INT4: uint8 [ceil(N/16), G, 16], or None where it is 8 everywhere; INT8: None
    """

    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray | None
    bits: int
    out_features: int
    in_features: int
    group_size: int = -1

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features


@dataclass(frozen=True)
class Linear:
    """Weight float32 [N, K] or quantized, bias float32 [N] or none, and the activations' treatment.

    activation_scale: float32 scalar, for `static` only.
    """

    weight: np.ndarray | QuantizedWeight | TiledWeight
    bias: np.ndarray | None = None
    activation: str = "float"
    activation_scale: np.ndarray | None = None


def float_weight(layer: Linear) -> np.ndarray:
    """The weight of a linear that is still in floats."""
    if isinstance(layer.weight, QuantizedWeight | TiledWeight):
        raise TypeError("this linear is quantized")
    return layer.weight


def quantized_weight(layer: Linear) -> QuantizedWeight:
    """The weight of a linear that is on a grid, in the canonical packing."""
    if not isinstance(layer.weight, QuantizedWeight):
        raise TypeError("this linear is not quantized, or lies in tiles")
    return layer.weight


def linear(x: np.ndarray, layer: Linear) -> np.ndarray:
    """y = x Wt + b for x [T, K] of one sequence -> [T, N] float32."""
    weight = layer.weight
    if not isinstance(weight, QuantizedWeight):
        y = x @ float_weight(layer).T
    elif layer.activation == "float":
        y = x @ dequantize(weight).T
    elif weight.bits == 8:
        y = int8_linear(x, layer)
    elif layer.activation == "per_group":
        y = int4_linear_per_group(x, weight)
    else:
        y = int4_linear_per_token(x, weight)
    return y if layer.bias is None else y + layer.bias


def dequantize(weight: QuantizedWeight) -> np.ndarray:
    """w = (q - z) * scale, float32 [N, K]."""
    if weight.bits == 8:
        return weight.codes.astype(np.float32) * weight.scale
    scale = expand_groups(weight.scale.astype(np.float32), weight.in_features, weight.group_size)
    return centred_codes(weight).astype(np.float32) * scale


def centred_codes(weight: QuantizedWeight) -> np.ndarray:
    """q - z, int8 [N, K]: in -15..15 for INT4; INT8 codes are centred as they are."""
    if weight.bits == 8:
        return weight.codes
    codes = unpack_nibbles(weight.codes, weight.in_features).astype(np.int8)
    if weight.zero_point is None:
        return codes - np.int8(SYMMETRIC_ZERO)
    zero = expand_groups(weight.zero_point.astype(np.int8), weight.in_features, weight.group_size)
    return codes - zero


def integer_product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """sum_k x[t, k] * w[n, k] as int32 [T, N]; exact, because float64 holds every partial sum."""
    return (x.astype(np.float64) @ w.astype(np.float64).T).astype(np.int32)


def quantize_activations(x: np.ndarray, layer: Linear) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 [T, K] and scale [T, 1] or [1, 1] of one sequence's activations x [T, K].

    per_tensor takes its maximum over the tokens that are computed together: those of one
    sequence in one prefill chunk or decode step, never over other sequences of a batch.
    """
    if layer.activation == "static":
        require_finite(x, "activations")
        scale = np.asarray(layer.activation_scale, np.float32).reshape(1, 1)
        return int8_codes(x, scale), scale
    granularity = {"per_token": "per_row", "per_tensor": "per_tensor"}[layer.activation]
    return quantize_int8(x, granularity, "activations")


def int8_linear(x: np.ndarray, layer: Linear) -> np.ndarray:
    """y[t,n] = (f32(sum_k xq[t,k] wq[n,k]) * a_scale[t]) * w_scale[n]. SmoothQuant's W8A8."""
    weight = quantized_weight(layer)
    codes, a_scale = quantize_activations(x, layer)
    total = integer_product(codes, weight.codes)
    return (total.astype(np.float32) * a_scale) * weight.scale.T


def int4_linear_per_token(x: np.ndarray, weight: QuantizedWeight) -> np.ndarray:
    """y[t,n] = (sum over g of f32(sum_{k in g} xq[t,k] (q - z)[n,k]) * w_scale[n,g]) * a_scale[t].

    The groups are added in ascending order.
    """
    codes, a_scale = quantize_int8(x, "per_row", "activations")
    y = np.zeros((x.shape[0], weight.shape[0]), np.float32)
    for g, total in enumerate(group_products(codes, weight)):
        y = y + total.astype(np.float32) * weight.scale[:, g].astype(np.float32)
    return y * a_scale


def int4_linear_per_group(x: np.ndarray, weight: QuantizedWeight) -> np.ndarray:
    """y[t,n] = sum over g of (f32(sum_{k in g} xq[t,k] (q-z)[n,k]) * w_scale[n,g]) * a_scale[t,g].

    The groups are added in ascending order.
    """
    codes, a_scale = quantize_int8_groups(x, weight.group_size)
    y = np.zeros((x.shape[0], weight.shape[0]), np.float32)
    for g, total in enumerate(group_products(codes, weight)):
        scaled = total.astype(np.float32) * weight.scale[:, g].astype(np.float32)
        y = y + scaled * a_scale[:, g, None]
    return y


def quantize_int8_groups(x: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Activations per (token, group): codes int8 [T, K], scale float32 [T, G]."""
    require_finite(x, "activations")
    scale = int8_scale(np.abs(grouped(x, group_size)).max(axis=2))
    return int8_codes(x, expand_groups(scale, x.shape[1], group_size)), scale


def group_products(codes: np.ndarray, weight: QuantizedWeight) -> list[np.ndarray]:
    """For each group ascending, the exact integer products int32 [T, N] over its inputs."""
    centred, k = centred_codes(weight), weight.in_features
    size = k if weight.group_size == -1 else weight.group_size
    starts = range(0, num_groups(k, weight.group_size) * size, size)
    spans = [slice(start, min(start + size, k)) for start in starts]
    return [integer_product(codes[:, span], centred[:, span]) for span in spans]
