"""Level 1: every op on the same inputs.

Where the subject's codes are visible (the portable XLA form) they must be equal, bit for bit:
    the stored weight                    codes q - z, scales, zero padding, float weights
    activation scales and codes          on every real row, and on rows made to be hard
    integer sums                         weight codes times activation codes
and the linear itself must be within the tolerance of tolerances.py.

For native kernels, on every loaded instruction set:
    the stored weight                    read back: codes q - z and scales
    activation codes times their scale   read through a weight of ones and zeros (make_probe)
    the linear itself                    bit-identical; weight-only within its tolerance
A kernel quantizes, multiplies and scales in one call, so its sums are not visible. They need not
be: a code or sum that is wrong by one moves an output by a whole step of its scale, which outputs
that are equal bit for bit on hard rows rule out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from planish.compare.conformance.check import Check, check
from planish.compare.conformance.tolerances import activation_scales, reference_codes, tolerance
from planish.compare.subject import Codes, Ops
from planish.reference import linear as reference_linear
from planish.reference.grids import SYMMETRIC_ZERO, int8_scale, num_groups
from planish.reference.linear import Linear
from planish.reference.model.experts import BESIDE
from planish.reference.packing import pack_nibbles
from planish.reference.quantized import QuantizedWeight, centred_codes

SMALLEST_GROUP = 32  # the largest value at every 32nd input gives every group the same scale
EXACT = 2**24  # float32 holds every integer up to here
PROBED = 256  # columns whose codes are read


def make_hard_rows(k: int, scale: np.ndarray | None = None) -> np.ndarray:
    """Synthetic rows [7, K] on which nearly right quantizers fail.

    zeros; very large and very small magnitudes; one outlier among tiny values; exact ties (scale 1:
    half to even); and values one rounding above and below the ties of an awkward scale, where
    x * (1 / scale) and x / scale differ.
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


@dataclass(frozen=True, kw_only=True)
class Op:
    """One linear of a model, and its layer and name."""

    layer: int | None
    part: str
    linear: Linear
    level: int = 1

    def check(
        self,
        name: str,
        expected: np.ndarray,
        found: np.ndarray,
        tolerance: np.ndarray | float = 0.0,
    ) -> Check:
        """One comparison; equal unless a tolerance is given."""
        part = f"{self.part}, {name}" if name else self.part
        return check(self.level, self.layer, part, expected, found, tolerance)


def check_linear_op(op: Op, x: np.ndarray, ops: Ops, codes: Codes | None) -> Iterator[Check]:
    """One linear: its stored weight, activation codes, integer sums and outputs.

    x [T, K]: the rows that the reference reads there.
    """
    yield from check_weight(op, ops)
    if not ops.fuses([op.linear]):
        yield from check_portable(op, x, ops, codes)
        return
    for isa in ops.variants:
        yield from check_kernel(op, x, ops, isa)


def check_portable(op: Op, x: np.ndarray, ops: Ops, codes: Codes | None) -> Iterator[Check]:
    """The XLA form, for 1 row and for 11, which is no multiple of a tile of 4 or 8 rows."""
    hard = make_hard_rows(x.shape[1], op.linear.activation_scale)
    if op.linear.activation != "float" and codes is not None:
        yield from check_activation_codes(op, "real rows", x, codes)
        for name, rows in split_hard_rows(op.linear, hard):
            yield from check_activation_codes(op, name, rows, codes)
        yield check_sums(op, np.concatenate([x[:4], hard]), codes)
    for rows in (x[:1], np.concatenate([x[-4:], hard])):
        found = ops.linear(rows[None], op.linear)[0]
        yield check_output(op, f"{len(rows)} rows", rows, found)


def check_kernel(op: Op, x: np.ndarray, ops: Ops, isa: str) -> Iterator[Check]:
    """The kernels of one instruction set, for 1, 7 and 23 rows.

    They compute 8, 4, 2 or 1 rows at a time, and up to 8 rows take another path than more.
    """
    hard = make_hard_rows(x.shape[1], op.linear.activation_scale)
    if op.linear.activation != "float":
        columns = choose_columns(x.shape[1])
        through = make_probe(op.linear, columns)
        for name, rows in (("real rows", x), *split_hard_rows(op.linear, hard)):
            seen = ops.linear(rows[None], through, None, isa)[0]
            expected = dequantize_rows(op.linear, rows)[:, columns]
            yield op.check(f"{name}, codes times scale, {isa}", expected, seen)
    for rows in (x[:1], hard, np.concatenate([x[-16:], hard])):
        found = ops.linear(rows[None], op.linear, None, isa)[0]
        yield check_output(op, f"{len(rows)} rows, {isa}", rows, found, native=True)


def split_hard_rows(linear: Linear, hard: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The hard rows by name: all at once, or one at a time where rows would share a scale."""
    if linear.activation != "per_tensor":
        yield "hard rows", hard
        return
    for number, row in enumerate(hard):
        yield f"hard row {number}", row[None]


def check_output(
    op: Op, name: str, x: np.ndarray, found: np.ndarray, native: bool = False
) -> Check:
    """The linear's outputs for rows x [T, K], within the tolerance of its operations."""
    expected = reference_linear.linear(x, op.linear)
    return op.check(name, expected, found, tolerance(x, op.linear, native))


def check_weight(op: Op, ops: Ops) -> Iterator[Check]:
    """The stored weight: no nibble, zero point, group, sign or bias is lost."""
    found = ops.weight(op.linear)
    if isinstance(op.linear.weight, QuantizedWeight):
        weight = reference_linear.quantized_weight(op.linear)
        codes = centred_codes(weight)
        padding = found["codes"].shape[1] - codes.shape[1]  # zeros that fill the last group
        padded = np.pad(codes, ((0, 0), (0, max(0, padding))))
        yield op.check("weight codes", padded, found["codes"])
        scale = weight.scale.astype(np.float32)
        if scale.size == 1:  # may be stored once, or once for each output
            scale = np.broadcast_to(scale, found["scale"].shape)
        yield op.check("weight scale", scale, found["scale"].astype(np.float32))
        for name in ("offset", "permutation"):
            expected = getattr(weight, name)
            if expected is not None:
                yield op.check(name, expected, found.get(name, np.zeros(0)))
    else:
        yield op.check("weight values", reference_linear.float_weight(op.linear), found["values"])
    for name in BESIDE:
        expected = getattr(op.linear, name)
        if expected is not None:
            yield op.check(name, expected, found.get(name, np.zeros(0)))


def check_activation_codes(op: Op, name: str, x: np.ndarray, codes: Codes) -> Iterator[Check]:
    """Activation scales and codes of rows x [T, K], quantized together: equal."""
    expected, scale = reference_codes(x, op.linear)
    found, found_scale = codes.activation_codes(x, op.linear)
    scale = np.broadcast_to(scale, (len(x), scale.shape[1]))
    yield op.check(f"{name}, activation scale", scale, found_scale)
    yield op.check(f"{name}, activation codes", expected, found)


def dequantize_rows(linear: Linear, x: np.ndarray) -> np.ndarray:
    """Activation codes, minus their zero point, times their scale, [T, K]."""
    codes, _ = reference_codes(x, linear)
    zero = linear.activation_zero_point
    centred = codes.astype(np.float32) - np.float32(0 if zero is None else zero)
    values: np.ndarray = centred * activation_scales(x, linear)
    return values


def make_probe(linear: Linear, columns: np.ndarray) -> Linear:
    """A linear that quantizes its input [T, K] the same way and outputs the codes of some columns.

    Row n of its weight is 1 at columns[n] and 0 elsewhere, and every scale is 1, so the output is
    code * activation scale, rounded once; code - zero point, if the input has one.
    """
    weight = reference_linear.quantized_weight(linear)
    k, bits, size = weight.shape[1], weight.scheme.bits, weight.scheme.group_size
    ones = (np.arange(k) == columns[:, None]).astype(np.uint8)
    scale = np.ones((len(columns), num_groups(k, size)), np.float32)
    codes = ones.astype(np.int8) if bits == 8 else pack_nibbles(ones + np.uint8(SYMMETRIC_ZERO))
    probe = replace(weight, codes=codes, scale=scale, zero_point=None, shape=(len(columns), k))
    return replace(linear, weight=probe, bias=None)


def choose_columns(k: int) -> np.ndarray:
    """Up to 256 of K columns, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, k - 1, min(k, PROBED)).astype(np.int64))


def check_sums(op: Op, x: np.ndarray, codes: Codes) -> Check:
    """Integer sums over K (INT4: over as many groups as float32 sums exactly): equal."""
    weight, rows = reference_linear.quantized_weight(op.linear), reference_codes(x, op.linear)[0]
    if weight.scheme.bits == 8:
        expected = reference_linear.integer_product(rows, weight.codes)
        return op.check("integer sums", expected, codes.integer_product(rows, weight.codes))
    products = reference_linear.group_products(rows, weight)
    size = weight.shape[1] if weight.scheme.group_size == -1 else weight.scheme.group_size
    groups = min(len(products), max(1, EXACT // (127 * 15 * size)))
    expected = np.sum(products[:groups], axis=0)
    return op.check("integer sums", expected, codes.group_sums(rows, op.linear, groups))


def check_integer_products(codes: Codes, seed: int = 0) -> Iterator[Check]:
    """Integer sums for one row, few and many, with extreme codes: equal."""
    rng = np.random.default_rng(seed)
    for rows, cols, outputs in ((1, 96, 33), (2, 64, 16), (13, 100, 7), (67, 257, 31)):
        x = rng.integers(-127, 128, (rows, cols)).astype(np.int8)
        w = rng.integers(-127, 128, (outputs, cols)).astype(np.int8)
        x[0], w[0] = 127, -127
        part = f"integer product {rows} x {cols} x {outputs}"
        expected = reference_linear.integer_product(x, w)
        yield check(1, None, part, expected, codes.integer_product(x, w), 0.0)


def check_scales(codes: Codes) -> Check:
    """INT8 scales over twelve orders of magnitude: equal, so computed by division."""
    absmax = np.logspace(-7, 5, 4001).astype(np.float32)
    return check(1, None, "int8 scale", int8_scale(absmax), codes.int8_scale(absmax), 0.0)
