"""Level 1 without a model: the native kernels on a thousand random linears, bit for bit.

A model's linears have friendly shapes and tame values. These have not:

    shapes       outputs that fill no tile of 16, inputs that fill no block of 4 or 8 and leave a
                 partial last group, 1 to 31 rows, one sequence or two
    weights      every code drawn, or all of them the smallest or the largest; scales of both
                 signs and, as float16, down to the smallest that it has; zero points 0..15
    activations  Gaussian with an outlier, constant rows, zeros, and the hard rows of ops.py
    and          bias and residual, or none

A kind is a combination of bits, treatment of activations, group and scales. Its cases share
their shapes, hence two compiled programs, and one Check, that of the worst case; `detail` says
how to draw that one again.

Integers must be equal. Where the activations are floats a sum has no order of its own, and where
all its terms are equal every addition errs to the same side: such kinds are held against the sum
in float64, within the bound of K additions in sequence, (16 + K / 2) eps sum |x w|. A single code
that is off by one exceeds it.

Left out: float32 scales of weights below 1.2e-38. XLA's threads take such numbers for zero, NumPy
does not, and no weight of a model is so small.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from planish.compare.conformance.check import Check, check
from planish.compare.conformance.ops import hard_rows
from planish.compare.conformance.tolerances import EPS, NOTHING
from planish.compare.subject import Ops
from planish.reference import linear as reference_linear
from planish.reference.grids import INT4_MAX, INT8_MAX, expand_groups, num_groups
from planish.reference.linear import Linear
from planish.reference.packing import pack_nibbles
from planish.reference.quantized import QuantizedWeight, centred_codes
from planish.reference.scheme import Scheme, int4, int8

CASES = 18  # of each kind; 56 kinds
SHAPES_OF_A_KIND = 2
SIZES = (
    (1, 1, 2),  # sequences
    (1, 2, 3, 5, 7, 8, 11, 13, 23, 31),  # rows
    (3, 32, 61, 75, 100, 160, 257, 300),  # inputs
    (1, 7, 16, 33, 50, 97),  # outputs
)
SMALLEST_HALF = 2.0**-24  # above zero in float16


@dataclass(frozen=True)
class Kind:
    """What the cases of one Check have in common."""

    bits: int
    activation: str
    group_size: int = -1
    scales: str = "per_channel"  # INT8: per_channel | per_tensor; INT4: float16 | float32
    zero_point: bool = False

    @property
    def scheme(self) -> Scheme:
        if self.bits == 8:
            return int8(self.scales, self.activation)
        return int4(
            self.group_size,
            symmetric=not self.zero_point,
            scale_dtype=self.scales,
            activation=self.activation,
        )

    def __str__(self) -> str:
        text = f"INT{self.bits}, activations {self.activation}, {self.scales}"
        if self.bits == 8:
            return text
        group = "row" if self.group_size == -1 else self.group_size
        return f"{text}, group {group}{', zero points' * self.zero_point}"


@dataclass(frozen=True)
class Shape:
    """Sizes of a case, and whether something is added to its outputs."""

    sequences: int
    rows: int  # of each sequence
    inputs: int
    outputs: int
    bias: bool
    residual: bool

    def __str__(self) -> str:
        return f"{self.sequences} x {self.rows} rows, {self.inputs} inputs, {self.outputs} outputs"


def kinds() -> list[Kind]:
    """Every combination that the kernels know."""
    int8 = itertools.product(("per_token", "per_tensor", "static", "float"), SCALES[8])
    groups, zero_points = (32, 64, 128, -1), (False, True)
    activations = ("per_group", "per_token", "float")
    int4 = itertools.product(activations, groups, SCALES[4], zero_points)
    return [Kind(8, kind, scales=scales) for kind, scales in int8] + [Kind(4, *k) for k in int4]


SCALES = {8: ("per_channel", "per_tensor"), 4: ("float16", "float32")}


def check_kernels(ops: Ops, cases: int = CASES, seed: int = 0) -> Iterator[Check]:
    """The worst of `cases` cases of every kind, for each instruction set."""
    for number, kind in enumerate(kinds()):
        worst = list[Check]()
        for case in range(cases):
            drawn = check_random_linear(kind, ops, (seed, number, case))
            worst = [max(pair, key=badness) for pair in zip(worst or drawn, drawn, strict=True)]
        yield from worst


def badness(item: Check) -> tuple[float, float]:
    """Sort key, worst last. With zero tolerance every mismatch is infinite: max_error decides."""
    return item.worst, item.max_error


def check_random_linear(kind: Kind, ops: Ops, seed: tuple[int, int, int]) -> list[Check]:
    """One case on every instruction set."""
    shape = random_shape(np.random.default_rng((*seed[:2], seed[2] % SHAPES_OF_A_KIND)))
    rng = np.random.default_rng((*seed, 1))
    linear = random_linear(kind, shape, rng)
    x = random_rows(linear, shape, rng)
    added = rng.standard_normal((*x.shape[:2], shape.outputs)).astype(np.float32)
    residual = added if shape.residual else None
    expected, allowed = outputs(x, linear, residual)
    found = [(isa, ops.linear(x, linear, residual, isa)) for isa in ops.variants]
    checks = [check(1, None, f"{kind}, {isa}", expected, y, allowed) for isa, y in found]
    detail = f"; {shape}, seed {seed}"
    return [replace(item, detail=item.detail + detail) for item in checks]


def outputs(
    x: np.ndarray, linear: Linear, residual: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """What x [B, T, K] should give, and how far off that may be: [B, T, N] each."""
    if linear.activation == "float":
        return float_outputs(x.astype(np.float64), linear, residual)
    expected = np.stack([reference_linear.linear(rows, linear) for rows in x])
    expected = expected if residual is None else residual + expected
    return expected, np.zeros(expected.shape)


def float_outputs(
    x: np.ndarray, linear: Linear, residual: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The same in float64, and the bound of float32."""
    weight = reference_linear.quantized_weight(linear)
    scale = expand_groups(weight.scale.astype(np.float64), x.shape[-1], weight.scheme.group_size)
    dense = centred_codes(weight) * scale
    expected, magnitude = x @ dense.T, np.abs(x) @ np.abs(dense).T
    for added in (linear.bias, residual):
        if added is not None:
            expected, magnitude = expected + added, magnitude + np.abs(added)
    return expected, EPS * (16 + x.shape[-1] / 2) * magnitude + NOTHING


def random_shape(rng: np.random.Generator) -> Shape:
    """Sizes of which few divide anything."""
    sequences, rows, inputs, outputs = (int(rng.choice(sizes)) for sizes in SIZES)
    bias, residual = (bool(choice) for choice in rng.integers(0, 2, 2))
    return Shape(sequences, rows, inputs, outputs, bias, residual)


def random_linear(kind: Kind, shape: Shape, rng: np.random.Generator) -> Linear:
    """Codes, scales, zero points and bias as a kind and a shape want them."""
    draw = random_int8 if kind.bits == 8 else random_int4
    weight = draw(kind, shape.outputs, shape.inputs, rng)
    bias = rng.standard_normal(shape.outputs).astype(np.float32) if shape.bias else None
    scale = rng.uniform(0.001, 0.1, 1).astype(np.float32) if kind.activation == "static" else None
    return Linear(weight, bias, scale)


def random_int8(kind: Kind, rows: int, cols: int, rng: np.random.Generator) -> QuantizedWeight:
    """Codes drawn from -127..127, or all equal."""
    codes = extreme(rng.integers(-INT8_MAX, INT8_MAX + 1, (rows, cols)), -INT8_MAX, INT8_MAX, rng)
    count = rows if kind.scales == "per_channel" else 1
    scale = np.exp(rng.uniform(-9, -1, (count, 1))).astype(np.float32)
    return QuantizedWeight(
        codes=codes.astype(np.int8), scale=scale, scheme=kind.scheme, shape=(rows, cols)
    )


def random_int4(kind: Kind, rows: int, cols: int, rng: np.random.Generator) -> QuantizedWeight:
    """Codes drawn from 0..15, or all equal; some float16 scales are as small as there are."""
    codes = extreme(rng.integers(0, INT4_MAX + 1, (rows, cols)), 0, INT4_MAX, rng)
    groups = rows, num_groups(cols, kind.group_size)
    size = np.exp(rng.uniform(-9, -1, groups)) * rng.choice([-1, 1], groups)
    size = np.where(rng.random(groups) < 0.05, SMALLEST_HALF, size)
    drawn = extreme(rng.integers(0, INT4_MAX + 1, groups), 0, INT4_MAX, rng).astype(np.uint8)
    zero, packed = drawn if kind.zero_point else None, pack_nibbles(codes.astype(np.uint8))
    return QuantizedWeight(
        codes=packed,
        scale=size.astype(kind.scales),
        zero_point=zero,
        scheme=kind.scheme,
        shape=(rows, cols),
    )


def extreme(codes: np.ndarray, low: int, high: int, rng: np.random.Generator) -> np.ndarray:
    """Drawn codes; one time in three all of them, or those of every other row, low or high."""
    choice = rng.integers(6)
    if choice == 0:
        return np.full_like(codes, rng.choice([low, high]))
    if choice == 1:
        codes[::2] = rng.choice([low, high])
    return codes


def random_rows(linear: Linear, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """x [B, T, K]: Gaussian with an outlier; some rows constant, zero or hard."""
    x = rng.standard_normal((shape.sequences, shape.rows, shape.inputs)).astype(np.float32)
    x[rng.random(x.shape) < 0.01] = 40
    hard = hard_rows(shape.inputs, linear.activation_scale)
    for row in np.argwhere(rng.random(x.shape[:2]) < 0.4):
        x[*row] = hard[rng.integers(len(hard))] if rng.integers(4) else rng.standard_normal()
    return x
