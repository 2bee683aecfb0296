"""Level 1: every op on the same inputs.

Equal, as integers or bit for bit:
    the weight as placed on the device   codes q - z, scales, zero padding, float weights
    activation scales and codes          on every real row, and on rows that are hard on purpose
    integer sums                         the weight's own codes times those codes

Within a bound, element by element: the linear itself. The reference rounds every float operation
behind an integer sum on its own, in a fixed order; XLA may fuse a multiplication with an addition
and add in its own order (the native kernels may not: they are bit-identical). 2 ulps for each
operation, an ulp being at most eps = 2^-23 of the magnitude that the operation works on:

    W8A8     (f32(sum) * a) * w + b      2 eps (3 |y| + |b|)       two products, one addition
    W4A8     G terms and G additions     2 eps ((3 + G) S + |b|)   S = sum over g of |term g|
    float    K products and additions    16 eps (sum |x w| + |b|)  blocked sums stay below

S and not |y|, because what cancels in a sum leaves its rounding behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import jax
import numpy as np

import fast.linear
import fast.weights
import reference.linear
from compare.check import Check, check
from reference.grids import expand_groups, grouped, int8_scale
from reference.linear import Linear, QuantizedWeight

EPS = float(np.finfo(np.float32).eps)
SUMMATION = 16 * EPS
NOTHING = 1e-30  # so that no tolerance is exactly zero
SMALLEST_GROUP = 32  # a largest entry at every 32nd place gives every group the same scale
EXACT = 2**24  # float32 holds every integer up to here


def place(tree: Any) -> Any:
    """A linear, a norm or a block as the engine places it on its device."""
    return jax.device_put(fast.weights.place_block(tree))


def computed(function: Callable[..., Any], *arguments: Any, static: tuple[int, ...] = ()) -> Any:
    """What one of the engine's functions gives when it is compiled, as NumPy arrays."""
    return jax.tree.map(np.asarray, jax.jit(function, static_argnums=static)(*arguments))


def hard_rows(k: int, scale: np.ndarray | None = None) -> np.ndarray:
    """Invented rows [7, K] that separate right from nearly right.

    zeros; the largest and the smallest magnitudes; one outlier over almost nothing; exact ties
    (scale 1: half to even); and entries a rounding away from ties of an awkward scale, above and
    below, on which x * (1 / scale) and x / scale part.
    """
    index = np.arange(k)
    sign = np.where(index % 2, -1, 1)
    halves = index % 253 - 126.5
    awkward = np.float32(3.7) / np.float32(127) if scale is None else scale.reshape(())
    near = halves.astype(np.float32) * awkward
    peaks = index % SMALLEST_GROUP == 0
    rows = [
        np.zeros(k),
        sign * 1e4,
        np.full(k, 1e-7),
        np.where(index == k // 2, 1e3, sign * 1e-2),
        np.where(peaks, 127, halves),
        np.where(peaks, np.float32(127) * awkward, near),
        np.where(peaks, np.float32(127) * awkward, np.nextafter(near, sign * np.float32(1e9))),
    ]
    return np.stack(rows).astype(np.float32)


def check_linear(layer: int | None, part: str, linear: Linear, x: np.ndarray) -> Iterator[Check]:
    """One linear: its weight as placed, its activations' codes, its sums, its outputs.

    x [T, K] is what the reference reads there. Outputs are taken for one row and for eleven, a
    prime: what works in multiples of 4 or 8 rows has a rest.
    """
    hard = hard_rows(x.shape[1], linear.activation_scale)
    placed = place(linear)
    yield from check_weight(layer, part, linear, placed)
    if linear.activation != "float":
        yield from check_codes(layer, f"{part}, real rows", linear, x)
        together = linear.activation != "per_tensor"  # where one scale serves all, one at a time
        for number, rows in enumerate([hard] if together else np.split(hard, len(hard))):
            name = "hard rows" if together else f"hard row {number}"
            yield from check_codes(layer, f"{part}, {name}", linear, rows)
        yield check_sums(layer, part, linear, placed, np.concatenate([x[:4], hard]))
    for rows in (x[:1], np.concatenate([x[-4:], hard])):
        yield check_output(1, layer, f"{part}, {len(rows)} rows", linear, placed, rows)


def check_output(
    level: int, layer: int | None, part: str, linear: Linear, placed: Linear, x: np.ndarray
) -> Check:
    """The linear's output for rows x [T, K], within the bound of the operations behind it."""
    found = computed(fast.linear.linear, x[None], placed)[0]
    expected = reference.linear.linear(x, linear)
    return check(level, layer, part, expected, found, tolerance(x, linear))


def check_weight(layer: int | None, part: str, linear: Linear, placed: Linear) -> Iterator[Check]:
    """The placed weight is the stored one: no nibble, zero point, group, sign or bias is lost."""
    for name, (expected, found) in placed_weight(linear.weight, placed.weight).items():
        yield check(1, layer, f"{part}, weight {name}", expected, found, 0.0)
    for name in ("bias", "activation_scale"):
        expected, found = getattr(linear, name), getattr(placed, name)
        if expected is not None:
            found = np.zeros(0) if found is None else np.asarray(found)
            yield check(1, layer, f"{part}, {name}", expected, found, 0.0)


def placed_weight(weight: Any, placed: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What each array of a placed weight should hold, and what it holds."""
    if not isinstance(weight, QuantizedWeight):
        return {"values": (weight, np.asarray(placed))}
    codes = reference.linear.centred_codes(weight) if weight.bits == 4 else weight.codes
    scale = weight.scale.astype(np.float32)
    found, found_scale = np.asarray(placed.codes), np.asarray(placed.scale)
    if isinstance(placed, fast.weights.GroupedWeight):  # [G, N, g] and [G, N]
        rows, k = weight.shape
        found, found_scale = found.transpose(1, 0, 2).reshape(rows, -1), found_scale.T
        codes = np.pad(codes, ((0, 0), (0, found.shape[1] - k)))
    if isinstance(placed, fast.weights.ScaledWeight):
        scale = np.broadcast_to(scale, found_scale.shape)
    return {"codes": (codes, found), "scale": (scale, found_scale)}


def check_codes(layer: int | None, part: str, linear: Linear, x: np.ndarray) -> Iterator[Check]:
    """Activation scales and codes of rows x [T, K], quantized together: equal."""
    codes, scale = reference_codes(x, linear)
    found, found_scale = fast_codes(x, linear)
    scale = np.broadcast_to(scale, (len(x), scale.shape[1]))
    yield check(1, layer, f"{part}, activation scale", scale, found_scale, 0.0)
    yield check(1, layer, f"{part}, activation codes", codes, found, 0.0)


def reference_codes(x: np.ndarray, linear: Linear) -> tuple[np.ndarray, np.ndarray]:
    """Codes [T, K] and scale [T or 1, 1 or G] by the definition."""
    if linear.activation == "per_group":
        return reference.linear.quantize_int8_groups(x, group_size_of(linear))
    return reference.linear.quantize_activations(x, linear)


def fast_codes(x: np.ndarray, linear: Linear) -> tuple[np.ndarray, np.ndarray]:
    """Codes [T, K] and scale [T, 1 or G] by the engine's functions."""
    if not (isinstance(linear.weight, QuantizedWeight) and linear.weight.bits == 4):
        bare = replace(linear, weight=np.zeros(0), bias=None)  # one program for every weight
        codes, scale = computed(fast.linear.quantize_activations, x[None], bare)
        return codes[0], scale
    groups = grouped(x, group_size_of(linear))
    codes, scale = computed(fast.linear.quantize_groups, groups, linear.activation, static=(1,))
    return codes.reshape(len(x), -1)[:, : x.shape[1]], scale[:, :, 0]


def group_size_of(linear: Linear) -> int:
    weight = linear.weight
    return weight.group_size if isinstance(weight, QuantizedWeight) else -1


def activation_scales(x: np.ndarray, linear: Linear) -> np.ndarray:
    """The scale of every entry of x, [T, K]."""
    _, scale = reference_codes(x, linear)
    if linear.activation == "per_group":
        return expand_groups(scale, x.shape[1], group_size_of(linear))
    return np.broadcast_to(scale, x.shape)


def check_sums(
    layer: int | None, part: str, linear: Linear, placed: Linear, x: np.ndarray
) -> Check:
    """Integer sums over K (INT4: over the groups that float32 holds exactly): equal."""
    weight, form = reference.linear.quantized_weight(linear), cast(Any, placed.weight)
    codes = reference_codes(x, linear)[0]
    if weight.bits == 8:
        expected = reference.linear.integer_product(codes, weight.codes)
        found = computed(fast.linear.integer_product, codes, form.codes)
    else:
        groups, _, size = form.codes.shape
        groups = min(groups, max(1, EXACT // (127 * 15 * size)))
        expected = np.sum(reference.linear.group_products(codes, weight)[:groups], axis=0)
        found = grouped_sums(codes, np.asarray(form.codes)[:groups])
    return check(1, layer, f"{part}, integer sums", expected, found, 0.0)


def grouped_sums(codes: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The engine's grouped product with every scale 1: codes [T, K], weight [G, N, g] -> [T, N]."""
    groups, outputs, size = weight.shape
    split = grouped(codes[:, : groups * size], size)
    placed = fast.weights.GroupedWeight(weight, np.ones((groups, outputs), np.float32))
    ones = np.ones((len(codes), groups, 1), np.float32)
    return computed(fast.linear.int4_rows, split, ones, placed)


def tolerance(x: np.ndarray, linear: Linear) -> np.ndarray:
    """How far each output [T, N] may be from the reference's: the module's table."""
    weight = linear.weight
    bias = 0.0 if linear.bias is None else np.abs(linear.bias)
    if not isinstance(weight, QuantizedWeight):
        dense = np.abs(reference.linear.float_weight(linear))
        return SUMMATION * (np.abs(x) @ dense.T + bias) + NOTHING
    if linear.activation == "float":
        dense = np.abs(reference.linear.dequantize(weight))
        return SUMMATION * (np.abs(x) @ dense.T + bias) + NOTHING
    if weight.bits == 8:
        terms = np.abs(reference.linear.linear(x, replace(linear, bias=None)))
        return 2 * EPS * (3 * terms + bias) + NOTHING
    return 2 * EPS * ((3 + weight.scale.shape[1]) * absolute_terms(x, linear) + bias) + NOTHING


def absolute_terms(x: np.ndarray, linear: Linear) -> np.ndarray:
    """sum over groups of |f32(sum xq (q - z)) * w_scale * a_scale|, [T, N]."""
    weight = reference.linear.quantized_weight(linear)
    codes, a_scale = reference_codes(x, linear)
    sums = reference.linear.group_products(codes, weight)
    scales = np.broadcast_to(a_scale, (len(x), len(sums)))
    terms = np.zeros((len(x), weight.shape[0]), np.float32)
    for g, total in enumerate(sums):
        terms += np.abs(total * weight.scale[:, g].astype(np.float32)) * scales[:, g, None]
    return terms


def check_integer_products(seed: int = 0) -> Iterator[Check]:
    """Integer sums for one row, few and many, with extreme codes: equal."""
    rng = np.random.default_rng(seed)
    for rows, cols, outputs in ((1, 96, 33), (2, 64, 16), (13, 100, 7), (67, 257, 31)):
        x = rng.integers(-127, 128, (rows, cols)).astype(np.int8)
        w = rng.integers(-127, 128, (outputs, cols)).astype(np.int8)
        x[0], w[0] = 127, -127
        expected = reference.linear.integer_product(x, w)
        found = computed(fast.linear.integer_product, x, w)
        part = f"integer product {rows} x {cols} x {outputs}"
        yield check(1, None, part, expected, found, 0.0)


def check_scales() -> Check:
    """int8 scales over twelve orders of magnitude: equal, so divided and not multiplied."""
    absmax = np.logspace(-7, 5, 4001).astype(np.float32)
    found = computed(fast.linear.int8_scale, absmax)
    return check(1, None, "int8 scale", int8_scale(absmax), found, 0.0)
