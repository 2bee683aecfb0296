"""One linear layer: y = x Wt + b, in floats or on integer codes (SPEC 2 and 4).

`linear` looks at the weight: an array is in floats, a QuantizedWeight has a scheme. Sources:
SmoothQuant, arXiv 2211.10438, for INT8; Efficient LLM Inference on CPUs, arXiv 2311.00502, for
INT4 weights.

    weights   activations                        name in the recipes
    float     float                              float
    INT8      float                              W8A16
    INT8      INT8 per_token, per_tensor, static W8A8, O1, O2, O3, naive
    INT4      float                              W4A16
    INT4      INT8 per_group or per_token        W4A8

T tokens, K inputs, N outputs, G groups. Integer sums are int32, exact for K <= 133,144. Here they
are computed as a float64 matrix product, which is exact too and ten times faster than NumPy's
integer product. The float operations after a sum are rounded one by one, in the order written.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planish.reference.grids import (
    expand_groups,
    int8_codes,
    int8_codes_around,
    int8_scale,
    num_groups,
    quantize_int8,
    require_finite,
    to_groups,
)
from planish.reference.quantized import QuantizedWeight, centred_codes, dequantize, to_layout
from planish.reference.scheme import Scheme


@dataclass(frozen=True)
class Linear:
    """Weight [N, K], float32 or quantized, and bias float32 [N] or None.

    activation_scale: float32 [1], only for a scheme with static activations.
    activation_zero_point: int8 [1], only if these have one.
    """

    weight: np.ndarray | QuantizedWeight
    bias: np.ndarray | None = None
    activation_scale: np.ndarray | None = None
    activation_zero_point: np.ndarray | None = None

    @property
    def scheme(self) -> Scheme | None:
        """How the weight is quantized; None if it is in floats."""
        return self.weight.scheme if isinstance(self.weight, QuantizedWeight) else None

    @property
    def activation(self) -> str:
        """How the input is quantized, one of scheme.ACTIVATIONS; `float` if it is not."""
        return "float" if self.scheme is None else self.scheme.activation


def float_weight(layer: Linear) -> np.ndarray:
    """The weight [N, K] of a linear in floats; TypeError if it is quantized."""
    if isinstance(layer.weight, QuantizedWeight):
        raise TypeError(f"expected a linear in floats, found {layer.weight.scheme}")
    return layer.weight


def quantized_weight(layer: Linear) -> QuantizedWeight:
    """The weight of a quantized linear, in the canonical layout; TypeError if it is in floats."""
    if not isinstance(layer.weight, QuantizedWeight):
        raise TypeError("expected a quantized linear, found one in floats")
    return to_layout(layer.weight, "canonical")


def linear(x: np.ndarray, layer: Linear) -> np.ndarray:
    """y = x Wt + b for x [T, K] of one sequence -> [T, N] float32."""
    scheme = layer.scheme
    y: np.ndarray
    if scheme is None:
        y = x @ float_weight(layer).T
    elif scheme.activation == "float":
        y = x @ dequantize(quantized_weight(layer)).T
    elif scheme.bits == 8:
        y = int8_linear(x, layer)
    elif scheme.activation == "per_group":
        y = int4_linear_per_group(x, quantized_weight(layer))
    else:
        y = int4_linear_per_token(x, quantized_weight(layer))
    return y if layer.bias is None else y + layer.bias


def integer_product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """sum_k x[t, k] * w[n, k] as int32 [T, N]; exact, because float64 holds every partial sum."""
    return (x.astype(np.float64) @ w.astype(np.float64).T).astype(np.int32)


def quantize_activations(x: np.ndarray, layer: Linear) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 [T, K] and scale [T, 1] or [1, 1] of one sequence's activations x [T, K].

    per_tensor takes its maximum over the tokens of one sequence in one prefill chunk or decode
    step, never over other sequences of a batch.
    """
    if layer.activation == "static":
        require_finite(x, "activations")
        scale = np.asarray(layer.activation_scale, np.float32).reshape(1, 1)
        if layer.activation_zero_point is not None:
            return int8_codes_around(x, scale, layer.activation_zero_point), scale
        return int8_codes(x, scale), scale
    granularity = {"per_token": "per_row", "per_tensor": "per_tensor"}[layer.activation]
    return quantize_int8(x, granularity, "activations")


def int8_linear(x: np.ndarray, layer: Linear) -> np.ndarray:
    """y[t,n] = (f32(sum_k xq[t,k] wq[n,k]) * a_scale[t]) * w_scale[n]. SmoothQuant's W8A8.

    Where inputs have a zero point, xq - zero_point is in place of xq.
    """
    weight = quantized_weight(layer)
    codes, a_scale = quantize_activations(x, layer)
    if layer.activation_zero_point is not None:
        codes = codes.astype(np.int16) - layer.activation_zero_point
    total = integer_product(codes, weight.codes)
    y: np.ndarray = (total.astype(np.float32) * a_scale) * weight.scale.T
    return y


def int4_linear_per_token(x: np.ndarray, weight: QuantizedWeight) -> np.ndarray:
    """y[t,n] = (sum over g of f32(sum_{k in g} xq[t,k] (q - z)[n,k]) * w_scale[n,g]) * a_scale[t].

    The groups are added in ascending order. codes [T, K], a_scale [T, 1].
    """
    codes, a_scale = quantize_int8(x, "per_row", "activations")
    y = np.zeros((x.shape[0], weight.shape[0]), np.float32)
    for g, total in enumerate(group_products(codes, weight)):
        y = y + total.astype(np.float32) * weight.scale[:, g].astype(np.float32)
    scaled: np.ndarray = y * a_scale
    return scaled


def int4_linear_per_group(x: np.ndarray, weight: QuantizedWeight) -> np.ndarray:
    """y[t,n] = sum over g of (f32(sum_{k in g} xq[t,k] (q-z)[n,k]) * w_scale[n,g]) * a_scale[t,g].

    The groups are added in ascending order. codes [T, K], a_scale [T, G].
    """
    codes, a_scale = quantize_int8_groups(x, weight.scheme.group_size)
    y = np.zeros((x.shape[0], weight.shape[0]), np.float32)
    for g, total in enumerate(group_products(codes, weight)):
        scaled = total.astype(np.float32) * weight.scale[:, g].astype(np.float32)
        y = y + scaled * a_scale[:, g, None]
    return y


def quantize_int8_groups(x: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Activations per (token, group): codes int8 [T, K], scale float32 [T, G]."""
    require_finite(x, "activations")
    scale = int8_scale(np.abs(to_groups(x, group_size)).max(axis=2))
    return int8_codes(x, expand_groups(scale, x.shape[1], group_size)), scale


def group_products(codes: np.ndarray, weight: QuantizedWeight) -> list[np.ndarray]:
    """The exact integer products int32 [T, N] over the inputs of each group, in ascending order."""
    centred, k, size = centred_codes(weight), weight.shape[1], weight.scheme.group_size
    groups, size = num_groups(k, size), k if size == -1 else size
    starts = range(0, groups * size, size)
    spans = [slice(start, min(start + size, k)) for start in starts]
    return [integer_product(codes[:, span], centred[:, span]) for span in spans]
