"""How much a linear's outputs may differ from the reference's, element by element.

After an integer sum the reference rounds every float operation separately, in a fixed order. Native
kernels must do the same, and are bit-identical: their tolerance is 0. XLA may fuse a multiplication
with an addition and add in any order. It is allowed 2 ulps for each operation, an ulp being at most
eps = 2^-23 of the magnitude that the operation works on:

    W8A8     (f32(sum) * a) * w + b      2 eps (3 |y| + |b|)       two products, one addition
    W4A8     G terms and G additions     2 eps ((3 + G) S + |b|)   S = sum over g of |term g|
    float    K products and additions    max(32, sqrt K) eps (sum |x w| + |b|)

The float row: rounding errors of a sum of K terms grow as sqrt K with high probability (Higham and
Mary 2019, https://doi.org/10.1137/18M1226312), half an ulp each, on either side. They grow faster
where they are alike. Where all terms are equal the errors have one sign: equal activations in
W8A16, K = 768, gave 17. Where one term exceeds all others every addition to it is rounded at its
magnitude: an outlier in W4A16, K = 256, gave 18, two fifths of it on the reference's side.

The tolerance uses S, not |y|: cancellation shrinks a sum but not its rounding error. The last line
holds for weight-only linears (W8A16, W4A16) in both forms, because floats may be summed in any
order. Where weights have offsets |w| is |q * scale| + |offset|, because x may be multiplied by each
of the two. Matrix tiles round a term 16 + 3 ceil(g / 32) times at most (docs/spec.md 4), less often
than a chain of g additions, so the same tolerance is enough for them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from planish.reference import linear as reference_linear
from planish.reference.grids import expand_groups
from planish.reference.linear import Linear
from planish.reference.quantized import QuantizedWeight, dequantize, to_layout

EPS = float(np.finfo(np.float32).eps)
TIE_OF_A_HEAD = 1e-3  # in units of the scale of a head of queries, keys or values
TINY = 1e-30  # so that no tolerance is exactly zero where floats are compared


def tolerance(x: np.ndarray, linear: Linear, native: bool = False) -> np.ndarray:
    """The tolerance of each output [T, N] for rows x [T, K], by this module's table."""
    weight = linear.weight
    bias = 0.0 if linear.bias is None else np.abs(linear.bias)
    if not isinstance(weight, QuantizedWeight):
        return bound_float_sums(x, reference_linear.float_weight(linear), bias)
    if linear.activation == "float":
        return bound_float_sums(x, weight_sizes(weight), bias)
    if native:
        return np.zeros((len(x), weight.shape[0]))
    if weight.scheme.bits == 8:
        terms, operations = np.abs(reference_linear.linear(x, replace(linear, bias=None))), 3
    else:
        terms, operations = sum_absolute_terms(x, linear), 3 + weight.scale.shape[1]
    allowed: np.ndarray = 2 * EPS * (operations * terms + bias) + TINY
    return allowed


def weight_sizes(weight: QuantizedWeight) -> np.ndarray:
    """|w|, or |q * scale| + |offset|, [N, K], inputs in the model's order."""
    sizes: np.ndarray = np.abs(dequantize(weight))
    if weight.offset is not None:
        canonical = to_layout(weight, "canonical")
        scaled = replace(canonical, offset=np.zeros_like(canonical.offset))
        added = replace(canonical, scale=np.zeros_like(canonical.scale))
        sizes = np.abs(dequantize(scaled)) + np.abs(dequantize(added))
    return sizes


def bound_float_sums(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | float) -> np.ndarray:
    """max(32, sqrt K) eps (sum |x w| + |b|), [T, N]. bias: |b|."""
    share = EPS * max(32.0, x.shape[1] ** 0.5)
    allowed: np.ndarray = share * (np.abs(x) @ np.abs(weight).T + bias) + TINY
    return allowed


def sum_absolute_terms(x: np.ndarray, linear: Linear) -> np.ndarray:
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
    """The reference's activation codes [T, K] and scale [T or 1, 1 or G]."""
    if linear.activation == "per_group":
        return reference_linear.quantize_int8_groups(x, find_group_size(linear))
    return reference_linear.quantize_activations(x, linear)


def find_group_size(linear: Linear) -> int:
    """Inputs that share a scale; -1 for the whole row."""
    weight = linear.weight
    return weight.scheme.group_size if isinstance(weight, QuantizedWeight) else -1


def activation_scales(x: np.ndarray, linear: Linear) -> np.ndarray:
    """The scale of every entry of x, [T, K]."""
    _, scale = reference_codes(x, linear)
    if linear.activation == "per_group":
        return expand_groups(scale, x.shape[1], find_group_size(linear))
    return np.broadcast_to(scale, x.shape)
