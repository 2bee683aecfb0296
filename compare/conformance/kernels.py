"""Level 1 without a model: the native kernels on a thousand random linears, bit for bit.

A model's linears have convenient shapes and moderate values. These do not:

    sizes        outputs that fill no tile of 16, inputs that fill no block of 4 or 8 and leave a
                 partial last group, 1 to 31 rows, one sequence or two
    weights      random codes, or all of them the smallest or the largest; scales of both signs
                 and, in float16, down to the smallest subnormal; zero points 0..15; what only other
                 programs write: offsets, INT8 in groups, inputs in another order, codes of -128
    activations  Gaussian with an outlier, constant rows, zeros, and the hard rows of ops.py;
                 static ones also with a zero point -128..127
    also         with and without bias and residual

A kind is a combination of bits, activation granularity, group size and scales. The cases of a kind
share two sizes, so that there are two programs to compile. A kind yields one Check, that of its
worst case, and its `detail` says how to draw that case again.

Integers must be equal. Float activations may be summed in any order, and where all terms are equal
every addition errs in the same direction. Such kinds are compared with the sum in float64, within
the tolerance of K additions in sequence, (16 + K / 2) eps sum |x w|. A single code that is wrong by
one exceeds it.

Float32 weight scales below 1.2e-38 are left out: XLA's threads flush subnormals to zero, NumPy does
not, and no weight of a model is so small.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from planish.compare.conformance.check import Check, check
from planish.compare.conformance.ops import make_hard_rows
from planish.compare.conformance.tolerances import EPS, TINY
from planish.compare.subject import Ops
from planish.reference import linear as reference_linear
from planish.reference.grids import INT4_MAX, INT8_MAX, expand_groups, num_groups
from planish.reference.linear import Linear
from planish.reference.packing import pack_nibbles
from planish.reference.quantized import QuantizedWeight, centred_codes
from planish.reference.scheme import Scheme, int4, int8

CASES = 18  # of each of 68 kinds
SIZES_OF_A_KIND = 2
SIZES = (
    (1, 1, 2),  # sequences
    (1, 2, 3, 5, 7, 8, 11, 13, 23, 31),  # rows
    (3, 32, 61, 75, 100, 160, 257, 300),  # inputs
    (1, 7, 16, 33, 50, 97),  # outputs
)
SMALLEST_HALF = 2.0**-24  # the smallest float16 above zero


@dataclass(frozen=True)
class Kind:
    """What the cases of one Check have in common."""

    bits: int
    activation: str
    group_size: int = -1
    scales: str = "per_channel"  # INT8: per_channel | per_tensor; of groups: float16 | float32
    zero_point: bool = False
    offset: bool = False
    act_order: bool = False
    input_zero_point: bool = False

    @property
    def foreign(self) -> bool:
        """Whether only other programs write such weights."""
        return self.grouped_int8 or self.offset or self.act_order or self.input_zero_point

    @property
    def grouped_int8(self) -> bool:
        return self.bits == 8 and self.scales in SCALES[4]

    @property
    def scheme(self) -> Scheme:
        if self.input_zero_point:
            return Scheme(
                bits=8,
                granularity=self.scales,
                activation="static",
                full_range=True,
                input_zero_point=True,
            )
        if self.foreign:
            return Scheme(
                bits=self.bits,
                granularity="per_channel" if self.group_size == -1 else "per_group",
                group_size=self.group_size,
                symmetric=not (self.zero_point or self.offset),
                scale_dtype=self.scales,
                offset=self.offset,
                act_order=self.act_order,
            )
        if self.bits == 8:
            return int8(self.scales, self.activation)
        return int4(
            self.group_size,
            symmetric=not self.zero_point,
            scale_dtype=self.scales,
            activation=self.activation,
        )

    def __str__(self) -> str:
        activation = f"{self.activation}{' with a zero point' * self.input_zero_point}"
        text = f"INT{self.bits}, activations {activation}, {self.scales}"
        if self.bits == 8 and self.scales in SCALES[8]:
            return text
        group = "row" if self.group_size == -1 else self.group_size
        text = f"{text}, group {group}{', zero points' * self.zero_point}"
        return f"{text}{', offsets' * self.offset}{', act order' * self.act_order}"


@dataclass(frozen=True)
class LinearSize:
    """The dimensions of a case, and what is added to its outputs."""

    sequences: int
    rows: int  # of each sequence
    inputs: int
    outputs: int
    bias: bool
    residual: bool

    def __str__(self) -> str:
        return f"{self.sequences} x {self.rows} rows, {self.inputs} inputs, {self.outputs} outputs"


def list_kinds() -> list[Kind]:
    """Every combination that the kernels support."""
    int8 = itertools.product(("per_token", "per_tensor", "static", "float"), SCALES[8])
    groups, zero_points = (32, 64, 128, -1), (False, True)
    activations = ("per_group", "per_token", "float")
    int4 = itertools.product(activations, groups, SCALES[4], zero_points)
    ours = [Kind(8, kind, scales=scales) for kind, scales in int8] + [Kind(4, *k) for k in int4]
    return ours + list_foreign_kinds()


def list_foreign_kinds() -> list[Kind]:
    """Offsets, INT8 in groups and act order, each group size once; zero points of inputs."""
    grouped = [
        Kind(8, "float", size, scales)
        for size, scales in zip((16, 32, 128), (*SCALES[4], "float16"), strict=True)
    ]
    narrow = [Kind(4, "float", size, SCALES[4][size == 64], offset=True) for size in (32, 64, -1)]
    wide = [
        Kind(8, "float", 32, "float16", offset=True),
        Kind(8, "float", -1, "float32", offset=True),
    ]
    ordered = [
        Kind(4, "float", 32, "float16", zero_point=True, act_order=True),
        Kind(8, "float", 16, "float32", offset=True, act_order=True),
    ]
    around = [Kind(8, "static", scales=scales, input_zero_point=True) for scales in SCALES[8]]
    return grouped + narrow + wide + ordered + around


SCALES = {8: ("per_channel", "per_tensor"), 4: ("float16", "float32")}


def check_kernels(ops: Ops, cases: int = CASES, seed: int = 0) -> Iterator[Check]:
    """The worst of `cases` cases of every kind, for each instruction set."""
    for number, kind in enumerate(list_kinds()):
        worst = list[Check]()
        for case in range(cases):
            drawn = check_random_linear(kind, ops, (seed, number, case))
            worst = [max(pair, key=badness) for pair in zip(worst or drawn, drawn, strict=True)]
        yield from worst


def badness(item: Check) -> tuple[float, float]:
    """Sort key, worst last; max_error decides where mismatches with zero tolerance score inf."""
    return item.worst, item.max_error


def check_random_linear(kind: Kind, ops: Ops, seed: tuple[int, int, int]) -> list[Check]:
    """One case on every instruction set."""
    size = draw_size(np.random.default_rng((*seed[:2], seed[2] % SIZES_OF_A_KIND)))
    rng = np.random.default_rng((*seed, 1))
    linear = draw_linear(kind, size, rng)
    x = draw_rows(linear, size, rng)
    added = rng.standard_normal((*x.shape[:2], size.outputs)).astype(np.float32)
    residual = added if size.residual else None
    expected, allowed = expect_outputs(x, linear, residual)
    found = [(isa, ops.linear(x, linear, residual, isa)) for isa in ops.variants]
    checks = [check(1, None, f"{kind}, {isa}", expected, y, allowed) for isa, y in found]
    detail = f"; {size}, seed {seed}"
    return [replace(item, detail=item.detail + detail) for item in checks]


def expect_outputs(
    x: np.ndarray, linear: Linear, residual: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Expected outputs for x [B, T, K], and their tolerances: [B, T, N] each."""
    if linear.activation == "float":
        return expect_float_outputs(x.astype(np.float64), linear, residual)
    expected = np.stack([reference_linear.linear(rows, linear) for rows in x])
    expected = expected if residual is None else residual + expected
    return expected, np.zeros(expected.shape)


def expect_float_outputs(
    x: np.ndarray, linear: Linear, residual: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The same computed in float64, and the tolerance of float32."""
    weight = reference_linear.quantized_weight(linear)
    dense, sizes = widen(weight)
    if weight.permutation is not None:
        x = x[..., weight.permutation]
    expected, magnitude = x @ dense.T, np.abs(x) @ sizes.T
    for added in (linear.bias, residual):
        if added is not None:
            expected, magnitude = expected + added, magnitude + np.abs(added)
    return expected, EPS * (16 + x.shape[-1] / 2) * magnitude + TINY


def widen(weight: QuantizedWeight) -> tuple[np.ndarray, np.ndarray]:
    """The weights as float64 [N, K], inputs in the order of the codes, and |q scale| + |offset|."""
    dense = centred_codes(weight) * expand_wide(weight, weight.scale)
    if weight.offset is None:
        return dense, np.abs(dense)
    offset = expand_wide(weight, weight.offset)
    return dense + offset, np.abs(dense) + np.abs(offset)


def expand_wide(weight: QuantizedWeight, values: np.ndarray) -> np.ndarray:
    """Scales or offsets of groups as float64, one for each code."""
    return expand_groups(values.astype(np.float64), weight.shape[1], weight.scheme.group_size)


def draw_size(rng: np.random.Generator) -> LinearSize:
    """Random dimensions, few of which are multiples of a tile or block."""
    sequences, rows, inputs, outputs = (int(rng.choice(sizes)) for sizes in SIZES)
    bias, residual = (bool(choice) for choice in rng.integers(0, 2, 2))
    return LinearSize(sequences, rows, inputs, outputs, bias, residual)


def draw_linear(kind: Kind, size: LinearSize, rng: np.random.Generator) -> Linear:
    """A random linear of a kind and size."""
    grouped = kind.grouped_int8 or kind.offset
    draw = draw_int4 if kind.bits == 4 else draw_bytes if grouped else draw_int8
    weight = draw(kind, size.outputs, size.inputs, rng)
    if kind.foreign:
        weight = add_foreign(kind, weight, rng)
    bias = rng.standard_normal(size.outputs).astype(np.float32) if size.bias else None
    scale = rng.uniform(0.001, 0.1, 1).astype(np.float32) if kind.activation == "static" else None
    zero = rng.integers(-128, 128, 1).astype(np.int8) if kind.input_zero_point else None
    return Linear(weight, bias, scale, zero)


def draw_int8(kind: Kind, rows: int, cols: int, rng: np.random.Generator) -> QuantizedWeight:
    """Random codes -127..127, in what other programs write also -128, or all equal."""
    low = -INT8_MAX - kind.foreign
    codes = make_extreme(rng.integers(low, INT8_MAX + 1, (rows, cols)), low, INT8_MAX, rng)
    count = rows if kind.scales == "per_channel" else 1
    scale = np.exp(rng.uniform(-9, -1, (count, 1))).astype(np.float32)
    return QuantizedWeight(
        codes=codes.astype(np.int8), scale=scale, scheme=kind.scheme, shape=(rows, cols)
    )


def draw_bytes(kind: Kind, rows: int, cols: int, rng: np.random.Generator) -> QuantizedWeight:
    """Random codes -128..127, or 0..255 with an offset, or all equal; scales of groups."""
    low, high = (0, 255) if kind.offset else (-128, 127)
    codes = make_extreme(rng.integers(low, high + 1, (rows, cols)), low, high, rng)
    scale = draw_group_scales(kind, rows, cols, rng)
    stored = codes.astype(np.uint8 if kind.offset else np.int8)
    return QuantizedWeight(codes=stored, scale=scale, scheme=kind.scheme, shape=(rows, cols))


def add_foreign(kind: Kind, weight: QuantizedWeight, rng: np.random.Generator) -> QuantizedWeight:
    """The weight with random offsets and a random order of its inputs, where its kind has them."""
    if kind.offset:
        sizes = rng.uniform(-4 * kind.bits, kind.bits, weight.scale.shape)
        offset = (weight.scale * sizes).astype(kind.scales)
        weight = replace(weight, offset=offset, zero_point=None)
    if kind.act_order:
        order = rng.permutation(weight.shape[1]).astype(np.int32)
        weight = replace(weight, permutation=order)
    return weight


def draw_group_scales(kind: Kind, rows: int, cols: int, rng: np.random.Generator) -> np.ndarray:
    """Scales [N, G] of both signs; some of float16 are the smallest possible."""
    groups = rows, num_groups(cols, kind.group_size)
    size = np.exp(rng.uniform(-9, -1, groups)) * rng.choice([-1, 1], groups)
    return np.where(rng.random(groups) < 0.05, SMALLEST_HALF, size).astype(kind.scales)


def draw_int4(kind: Kind, rows: int, cols: int, rng: np.random.Generator) -> QuantizedWeight:
    """Random codes 0..15, or all equal; some float16 scales are the smallest possible."""
    codes = make_extreme(rng.integers(0, INT4_MAX + 1, (rows, cols)), 0, INT4_MAX, rng)
    scale = draw_group_scales(kind, rows, cols, rng)
    drawn = make_extreme(rng.integers(0, INT4_MAX + 1, scale.shape), 0, INT4_MAX, rng)
    drawn = drawn.astype(np.uint8)
    zero, packed = drawn if kind.zero_point else None, pack_nibbles(codes.astype(np.uint8))
    return QuantizedWeight(
        codes=packed,
        scale=scale,
        zero_point=zero,
        scheme=kind.scheme,
        shape=(rows, cols),
    )


def make_extreme(codes: np.ndarray, low: int, high: int, rng: np.random.Generator) -> np.ndarray:
    """The codes; one time in three all of them, or every other row, set to low or high."""
    choice = rng.integers(6)
    if choice == 0:
        return np.full_like(codes, rng.choice([low, high]))
    if choice == 1:
        codes[::2] = rng.choice([low, high])
    return codes


def draw_rows(linear: Linear, size: LinearSize, rng: np.random.Generator) -> np.ndarray:
    """x [B, T, K]: Gaussian with an outlier; some rows constant, zero or hard."""
    x = rng.standard_normal((size.sequences, size.rows, size.inputs)).astype(np.float32)
    x[rng.random(x.shape) < 0.01] = 40
    hard = make_hard_rows(size.inputs, linear.activation_scale)
    for row in np.argwhere(rng.random(x.shape[:2]) < 0.4):
        x[*row] = hard[rng.integers(len(hard))] if rng.integers(4) else rng.standard_normal()
    return x
