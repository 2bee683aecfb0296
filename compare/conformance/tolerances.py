"""How far a linear's outputs may lie from the reference's, element by element.

The reference rounds every float operation behind an integer sum on its own, in a fixed order.
The native kernels must too, and are bit-identical: their bound is 0. XLA may fuse a
multiplication with an addition and add in its own order. 2 ulps for each operation, an ulp being
at most eps = 2^-23 of the magnitude that the operation works on:

    W8A8     (f32(sum) * a) * w + b      2 eps (3 |y| + |b|)       two products, one addition
    W4A8     G terms and G additions     2 eps ((3 + G) S + |b|)   S = sum over g of |term g|
    float    K products and additions    max(16, sqrt K) eps (sum |x w| + |b|)

The float row: rounding errors of a sum of K terms grow as sqrt K with high probability (Higham and
Mary 2019, https://doi.org/10.1137/18M1226312), half an ulp each, on either side. Where all terms
are equal they add up and reach that: a row of equal activations in W8A16, K = 768, was seen at 17.

S and not |y|, because what cancels in a sum leaves its rounding behind. The last line holds for
weight-only linears (W8A16, W4A16) in both forms: a sum of floats has no order of its own.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from planish.reference import linear as reference_linear
from planish.reference.grids import expand_groups
from planish.reference.linear import Linear
from planish.reference.quantized import QuantizedWeight, dequantize

EPS = float(np.finfo(np.float32).eps)
NOTHING = 1e-30  # so that no tolerance is exactly zero where floats are compared


def tolerance(x: np.ndarray, linear: Linear, native: bool = False) -> np.ndarray:
    """The bound of each output [T, N]: the module's table."""
    weight = linear.weight
    bias = 0.0 if linear.bias is None else np.abs(linear.bias)
    if not isinstance(weight, QuantizedWeight):
        dense = np.abs(reference_linear.float_weight(linear))
        return summation(x.shape[1]) * (np.abs(x) @ dense.T + bias) + NOTHING
    if linear.activation == "float":
        dense = np.abs(dequantize(weight))
        return summation(x.shape[1]) * (np.abs(x) @ dense.T + bias) + NOTHING
    if native:
        return np.zeros((len(x), weight.shape[0]))
    if weight.scheme.bits == 8:
        terms = np.abs(reference_linear.linear(x, replace(linear, bias=None)))
        return 2 * EPS * (3 * terms + bias) + NOTHING
    return 2 * EPS * ((3 + weight.scale.shape[1]) * absolute_terms(x, linear) + bias) + NOTHING


def summation(count: int) -> float:
    """How far two float sums of `count` terms may differ, relative to the terms' magnitudes."""
    return EPS * max(16.0, count**0.5)


def absolute_terms(x: np.ndarray, linear: Linear) -> np.ndarray:
    """sum over groups of |f32(sum xq (q - z)) * w_scale * a_scale|, [T, N]."""
    weight = reference_linear.quantized_weight(linear)
    codes, a_scale = reference_codes(x, linear)
    sums = reference_linear.group_products(codes, weight)
    scales = np.broadcast_to(a_scale, (len(x), len(sums)))
    terms = np.zeros((len(x), weight.shape[0]), np.float32)
    for g, total in enumerate(sums):
        terms += np.abs(total * weight.scale[:, g].astype(np.float32)) * scales[:, g, None]
    return terms


def reference_codes(x: np.ndarray, linear: Linear) -> tuple[np.ndarray, np.ndarray]:
    """Codes [T, K] and scale [T or 1, 1 or G] by the definition."""
    if linear.activation == "per_group":
        return reference_linear.quantize_int8_groups(x, group_size_of(linear))
    return reference_linear.quantize_activations(x, linear)


def group_size_of(linear: Linear) -> int:
    weight = linear.weight
    return weight.scheme.group_size if isinstance(weight, QuantizedWeight) else -1


def activation_scales(x: np.ndarray, linear: Linear) -> np.ndarray:
    """The scale of every entry of x, [T, K]."""
    _, scale = reference_codes(x, linear)
    if linear.activation == "per_group":
        return expand_groups(scale, x.shape[1], group_size_of(linear))
    return np.broadcast_to(scale, x.shape)
