"""Level 1: every op on the same inputs.

Codes, packings and integer sums must be equal. A quantized linear may be off by 2 ulps for each
float operation behind its integer sum (XLA fuses multiplications with additions and adds in its
own order; the native kernels are bit-identical). A float linear may be off by its summation error.
Inputs are the reference's own, with rows that are hard on purpose: zeros, extremes, ties.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

import fast.linear
import fast.weights
import reference.linear
from compare.check import Check, check
from reference.grids import expand_groups, int8_scale
from reference.linear import Linear, QuantizedWeight

EPS = float(np.finfo(np.float32).eps)
SUMMATION = 16 * EPS  # of the sum of |terms|: blocked sums of some thousands of terms stay below


def hard_rows(x: np.ndarray) -> np.ndarray:
    """A few real rows and four invented ones, eleven in all (a prime): [11, K]."""
    k = x.shape[1]
    alternating = np.where(np.arange(k) % 2, -1, 1).astype(np.float32)
    ties = (np.arange(k) % 254 - 127 + 0.5).astype(np.float32)
    ties[0] = 127  # the scale is then 1, and every entry lies half-way between two codes
    invented = [np.zeros(k, np.float32), alternating * np.float32(1e4), ties, np.full(k, 1e-7)]
    return np.concatenate([x[:7], np.stack(invented).astype(np.float32)])


def check_linear(layer: int | None, part: str, linear: Linear, x: np.ndarray) -> Iterator[Check]:
    """One linear: its placed weight, its activations' codes, its output for many rows and one."""
    placed = jax.tree.map(jnp.asarray, fast.weights.place_linear(linear))
    if isinstance(linear.weight, QuantizedWeight):
        yield check_weight(layer, part, linear.weight, placed)
    for rows in (hard_rows(x), x[:1]):
        name = f"{part}, {len(rows)} row{'s' if len(rows) > 1 else ''}"
        if linear.activation != "float":
            yield from check_codes(layer, name, linear, rows)
        found = jax.jit(fast.linear.linear)(jnp.asarray(rows)[None], placed)[0]
        expected = reference.linear.linear(rows, linear)
        yield check(1, layer, name, expected, np.asarray(found), tolerance(rows, linear))


def check_weight(layer: int | None, part: str, weight: QuantizedWeight, placed: Linear) -> Check:
    """The placed codes times their scales are the stored ones: no nibble, group or sign is lost."""
    expected = reference.linear.dequantize(weight)
    form = placed.weight
    if isinstance(form, fast.weights.GroupedWeight):
        codes = np.asarray(form.codes, np.float32) * np.asarray(form.scale)[:, :, None]
        found = codes.transpose(1, 0, 2).reshape(len(expected), -1)[:, : weight.in_features]
    elif isinstance(form, fast.weights.ScaledWeight):
        found = np.asarray(fast.linear.dequantize(form))
    else:
        found = np.asarray(form.codes, np.float32) * np.asarray(form.scale)
    return check(1, layer, f"{part}, weight", expected, found, 0.0)


def check_codes(layer: int | None, part: str, linear: Linear, x: np.ndarray) -> Iterator[Check]:
    """Activation scales and codes: equal."""
    codes, scale = reference_codes(x, linear)
    found, found_scale = fast_codes(x, linear)
    yield check(1, layer, f"{part}, activation scale", scale, found_scale, 0.0)
    yield check(1, layer, f"{part}, activation codes", codes, found, 0.0)


def reference_codes(x: np.ndarray, linear: Linear) -> tuple[np.ndarray, np.ndarray]:
    """Codes [T, K] and scale [T or 1, 1 or G] by the definition."""
    if linear.activation == "per_group":
        return reference.linear.quantize_int8_groups(x, group_size_of(linear))
    return reference.linear.quantize_activations(x, linear)


def fast_codes(x: np.ndarray, linear: Linear) -> tuple[np.ndarray, np.ndarray]:
    """The same by the engine's functions."""
    placed = jax.tree.map(jnp.asarray, fast.weights.place_linear(linear))
    scales = reference_codes(x, linear)[1].shape
    if not isinstance(placed.weight, fast.weights.GroupedWeight):
        codes, a_scale = jax.jit(fast.linear.quantize_activations)(jnp.asarray(x)[None], placed)
        return np.asarray(codes)[0], np.asarray(a_scale)[: scales[0]]
    groups, _, size = placed.weight.codes.shape
    split = fast.linear.split_groups(jnp.asarray(x), groups, size)
    quantize = jax.jit(fast.linear.quantize_groups, static_argnums=1)
    codes, a_scale = quantize(split, linear.activation)
    return np.asarray(codes).reshape(len(x), -1)[:, : x.shape[1]], np.asarray(a_scale)[:, :, 0]


def group_size_of(linear: Linear) -> int:
    weight = linear.weight
    return weight.group_size if isinstance(weight, QuantizedWeight) else -1


def activation_scales(x: np.ndarray, linear: Linear) -> np.ndarray:
    """The scale of every entry of x, [T, K]."""
    _, scale = reference_codes(x, linear)
    if linear.activation == "per_group":
        return expand_groups(scale, x.shape[1], group_size_of(linear))
    return np.broadcast_to(scale, x.shape)


def tolerance(x: np.ndarray, linear: Linear) -> np.ndarray:
    """How far each output [T, N] may be from the reference's.

    float activations: summation error, 16 eps sum |x w|. Integer sums: 2 ulps for each of the
    two scale multiplications, the G additions of groups and the bias.
    """
    weight = linear.weight
    bias = 0.0 if linear.bias is None else np.abs(linear.bias)
    if not isinstance(weight, QuantizedWeight):
        return SUMMATION * (np.abs(x) @ np.abs(weight.T) + bias) + 1e-30
    if linear.activation == "float":
        dense = np.abs(reference.linear.dequantize(weight))
        return SUMMATION * (np.abs(x) @ dense.T + bias) + 1e-30
    if weight.bits == 8:
        terms = np.abs(reference.linear.linear(x, replace(linear, bias=None)))
        return 2 * EPS * (3 * terms + bias) + 1e-30
    terms, groups = absolute_terms(x, linear), weight.scale.shape[1]
    return 2 * EPS * ((3 + groups) * terms + bias) + 1e-30


def absolute_terms(x: np.ndarray, linear: Linear) -> np.ndarray:
    """sum over groups of |f32(sum xq (q - z)) * w_scale * a_scale|, [T, N]."""
    weight = linear.weight
    codes, a_scale = reference_codes(x, linear)
    sums = reference.linear.group_products(codes, weight)
    scales = np.broadcast_to(a_scale, (len(x), len(sums)))
    return sum(
        np.abs(total * weight.scale[:, g].astype(np.float32)) * scales[:, g, None]
        for g, total in enumerate(sums)
    )


def check_integer_products(seed: int = 0) -> Iterator[Check]:
    """Integer sums for one row, few and many, with extreme codes: equal."""
    rng = np.random.default_rng(seed)
    for rows, cols, outputs in ((1, 96, 33), (2, 64, 16), (13, 100, 7), (67, 257, 31)):
        x = rng.integers(-127, 128, (rows, cols)).astype(np.int8)
        w = rng.integers(-127, 128, (outputs, cols)).astype(np.int8)
        x[0], w[0] = 127, -127
        expected = reference.linear.integer_product(x, w)
        found = jax.jit(fast.linear.integer_product)(jnp.asarray(x), jnp.asarray(w))
        part = f"integer product {rows} x {cols} x {outputs}"
        yield check(1, None, part, expected, np.asarray(found), 0.0)


def check_scales() -> Check:
    """int8 scales over twelve orders of magnitude: equal, so divided and not multiplied."""
    absmax = np.logspace(-7, 5, 4001).astype(np.float32)
    found = jax.jit(fast.linear.int8_scale)(jnp.asarray(absmax))
    return check(1, None, "int8 scale", int8_scale(absmax), np.asarray(found), 0.0)
