"""Level 1: every op on the same inputs.

Equal, as integers or bit for bit, for XLA:
    the weight as placed on the device   codes q - z, scales, zero padding, float weights
    activation scales and codes          on every real row, and on rows that are hard on purpose
    integer sums                         the weight's own codes times those codes
and the linear itself within the bound of bounds.py.

For the native kernels, on every instruction set that is loaded:
    the weight in tiles                  taken out of them: codes q - z and scales as stored
    activation codes times their scale   read through a weight of ones and zeros (`observer`)
    the linear itself                    bit-identical; weight-only within the bound
A kernel quantizes, multiplies and scales in one call, so its sums cannot be seen. They need not
be: one code or sum that is off by one moves an output by a whole step of its scale, and outputs
that are equal bit for bit on hard rows leave no room for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np

from planish.compare.conformance.check import Check, check
from planish.compare.conformance.on_device import (
    Sets,
    computed,
    is_native,
    kernel_output,
    place,
    placed_weight,
    portable_output,
)
from planish.compare.conformance.tolerances import (
    activation_scales,
    group_size_of,
    reference_codes,
    tolerance,
)
from planish.fast.xla import linear as fast_linear
from planish.reference import linear as reference_linear
from planish.reference.grids import SYMMETRIC_ZERO, grouped, int8_scale, num_groups
from planish.reference.linear import Linear
from planish.reference.packing import pack_nibbles
from planish.reference.quantized import QuantizedWeight
from planish.reference.scheme import int4

SMALLEST_GROUP = 32  # a largest entry at every 32nd place gives every group the same scale
EXACT = 2**24  # float32 holds every integer up to here
OBSERVED = 256  # columns whose codes are read


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


def check_linear(
    layer: int | None, part: str, linear: Linear, x: np.ndarray, sets: Sets = ()
) -> Iterator[Check]:
    """One linear: its weight as placed, its activations' codes, its sums, its outputs.

    x [T, K] is what the reference reads there. With `sets` the kernels of each are judged, where
    the weight is quantized.
    """
    placed = place(linear, bool(sets))
    yield from check_weight(layer, part, linear, placed)
    if not is_native(placed):
        yield from check_portable(layer, part, linear, placed, x)
        return
    for isa in sets:
        yield from check_kernel(layer, part, linear, placed, x, isa)


def check_portable(
    layer: int | None, part: str, linear: Linear, placed: Linear, x: np.ndarray
) -> Iterator[Check]:
    """XLA's form, for one row and for eleven: what works in multiples of 4 or 8 rows has a rest."""
    hard = hard_rows(x.shape[1], linear.activation_scale)
    if linear.activation != "float":
        yield from check_codes(layer, f"{part}, real rows", linear, x)
        for name, rows in hard_parts(linear, hard):
            yield from check_codes(layer, f"{part}, {name}", linear, rows)
        yield check_sums(layer, part, linear, placed, np.concatenate([x[:4], hard]))
    for rows in (x[:1], np.concatenate([x[-4:], hard])):
        found = portable_output(rows, placed)
        yield check_output(layer, f"{part}, {len(rows)} rows", linear, rows, found)


def check_kernel(
    layer: int | None, part: str, linear: Linear, placed: Linear, x: np.ndarray, isa: str
) -> Iterator[Check]:
    """The kernels of one instruction set, for 1, 7 and 23 rows.

    They take 8, 4, 2 and 1 rows together, and up to 8 rows go another way than more.
    """
    hard = hard_rows(x.shape[1], linear.activation_scale)
    if linear.activation != "float":
        yield check_seen_codes(layer, f"{part}, real rows", linear, x, isa)
        for name, rows in hard_parts(linear, hard):
            yield check_seen_codes(layer, f"{part}, {name}", linear, rows, isa)
    for rows in (x[:1], hard, np.concatenate([x[-16:], hard])):
        found = kernel_output(rows, placed, isa)
        yield check_output(layer, f"{part}, {len(rows)} rows, {isa}", linear, rows, found, True)


def hard_parts(linear: Linear, hard: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The hard rows by name: all at once, or one at a time where one scale would serve them all."""
    if linear.activation != "per_tensor":
        yield "hard rows", hard
        return
    for number, row in enumerate(hard):
        yield f"hard row {number}", row[None]


def check_output(
    layer: int | None,
    part: str,
    linear: Linear,
    x: np.ndarray,
    found: np.ndarray,
    native: bool = False,
    level: int = 1,
) -> Check:
    """The linear's outputs for rows x [T, K], within the bound of the operations behind them."""
    expected = reference_linear.linear(x, linear)
    return check(level, layer, part, expected, found, tolerance(x, linear, native))


def check_weight(layer: int | None, part: str, linear: Linear, placed: Linear) -> Iterator[Check]:
    """The placed weight is the stored one: no nibble, zero point, group, sign or bias is lost."""
    for name, (expected, found) in placed_weight(linear.weight, placed.weight).items():
        yield check(1, layer, f"{part}, weight {name}", expected, found, 0.0)
    for name in ("bias", "activation_scale"):
        expected, found = getattr(linear, name), getattr(placed, name)
        if expected is not None:
            found = np.zeros(0) if found is None else np.asarray(found)
            yield check(1, layer, f"{part}, {name}", expected, found, 0.0)


def check_codes(layer: int | None, part: str, linear: Linear, x: np.ndarray) -> Iterator[Check]:
    """Activation scales and codes of rows x [T, K], quantized together: equal."""
    codes, scale = reference_codes(x, linear)
    found, found_scale = fast_codes(x, linear)
    scale = np.broadcast_to(scale, (len(x), scale.shape[1]))
    yield check(1, layer, f"{part}, activation scale", scale, found_scale, 0.0)
    yield check(1, layer, f"{part}, activation codes", codes, found, 0.0)


def fast_codes(x: np.ndarray, linear: Linear) -> tuple[np.ndarray, np.ndarray]:
    """Codes [T, K] and scale [T, 1 or G] by the engine's functions."""
    weight = reference_linear.quantized_weight(linear)
    if weight.scheme.bits == 8:
        nothing = np.zeros(0)  # one program for every weight
        weight = replace(weight, codes=nothing, scale=nothing, shape=(0, 0))
        bare = replace(linear, weight=weight, bias=None)
        codes, scale = computed(fast_linear.quantize_activations, x[None], bare)
        return codes[0], scale
    groups = grouped(x, group_size_of(linear))
    codes, scale = computed(fast_linear.quantize_groups, groups, linear.activation, static=(1,))
    return codes.reshape(len(x), -1)[:, : x.shape[1]], scale[:, :, 0]


def check_seen_codes(
    layer: int | None, part: str, linear: Linear, x: np.ndarray, isa: str
) -> Check:
    """A kernel's activation codes times their scale, read through `observer`: equal."""
    columns = observed_columns(x.shape[1])
    seen = kernel_output(x, place(observer(linear, columns), native=True), isa)
    codes, _ = reference_codes(x, linear)
    expected = (codes.astype(np.float32) * activation_scales(x, linear))[:, columns]
    return check(1, layer, f"{part}, codes times scale, {isa}", expected, seen, 0.0)


def observer(linear: Linear, columns: np.ndarray) -> Linear:
    """A linear that treats its input [T, K] alike and hands on the codes of some columns.

    Row n of its weight is 1 at columns[n] and 0 elsewhere, every scale 1: f32(code * 1) * scale
    is all that is rounded.
    """
    weight = reference_linear.quantized_weight(linear)
    k, bits, size = weight.shape[1], weight.scheme.bits, weight.scheme.group_size
    ones = (np.arange(k) == columns[:, None]).astype(np.uint8)
    scale = np.ones((len(columns), num_groups(k, size)), np.float32)
    codes = ones.astype(np.int8) if bits == 8 else pack_nibbles(ones + np.uint8(SYMMETRIC_ZERO))
    seen = replace(weight, codes=codes, scale=scale, zero_point=None, shape=(len(columns), k))
    return replace(linear, weight=seen, bias=None)


def observed_columns(k: int) -> np.ndarray:
    """Up to 256 of K columns, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, k - 1, min(k, OBSERVED)).astype(np.int64))


def check_sums(
    layer: int | None, part: str, linear: Linear, placed: Linear, x: np.ndarray
) -> Check:
    """Integer sums over K (INT4: over the groups that float32 holds exactly): equal."""
    weight, form = reference_linear.quantized_weight(linear), cast(Any, placed.weight)
    codes = reference_codes(x, linear)[0]
    if weight.scheme.bits == 8:
        expected = reference_linear.integer_product(codes, weight.codes)
        found = computed(fast_linear.integer_product, codes, form.codes)
    else:
        groups, _, size = form.codes.shape
        groups = min(groups, max(1, EXACT // (127 * 15 * size)))
        expected = np.sum(reference_linear.group_products(codes, weight)[:groups], axis=0)
        found = grouped_sums(codes, np.asarray(form.codes)[:groups])
    return check(1, layer, f"{part}, integer sums", expected, found, 0.0)


def grouped_sums(codes: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The engine's grouped product with every scale 1: codes [T, K], weight [G, N, g] -> [T, N]."""
    groups, outputs, size = weight.shape
    split = grouped(codes[:, : groups * size], size)
    placed = QuantizedWeight(
        codes=weight,
        scale=np.ones((groups, outputs), np.float32),
        scheme=int4(activation="per_group"),
        shape=(outputs, groups * size),
        layout="grouped",
    )
    ones = np.ones((len(codes), groups, 1), np.float32)
    return computed(fast_linear.int4_rows, split, ones, placed)


def check_integer_products(seed: int = 0) -> Iterator[Check]:
    """Integer sums for one row, few and many, with extreme codes: equal."""
    rng = np.random.default_rng(seed)
    for rows, cols, outputs in ((1, 96, 33), (2, 64, 16), (13, 100, 7), (67, 257, 31)):
        x = rng.integers(-127, 128, (rows, cols)).astype(np.int8)
        w = rng.integers(-127, 128, (outputs, cols)).astype(np.int8)
        x[0], w[0] = 127, -127
        expected = reference_linear.integer_product(x, w)
        found = computed(fast_linear.integer_product, x, w)
        part = f"integer product {rows} x {cols} x {outputs}"
        yield check(1, None, part, expected, found, 0.0)


def check_scales() -> Check:
    """int8 scales over twelve orders of magnitude: equal, so divided and not multiplied."""
    absmax = np.logspace(-7, 5, 4001).astype(np.float32)
    found = computed(fast_linear.int8_scale, absmax)
    return check(1, None, "int8 scale", int8_scale(absmax), found, 0.0)
