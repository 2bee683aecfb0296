"""Native linears of what only other programs write (SPEC 4).

Offsets, INT8 in groups and act order, within rounding; inputs with a zero point, bit for bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import planish.fast.model.weights  # noqa: F401 (makes pytrees of the reference's types)
from planish.compare.conformance.kernels import widen
from planish.fast.native import linear as native
from planish.fast.native.instruction_sets import BY_NAME
from planish.reference.grids import num_groups
from planish.reference.linear import Linear, linear, quantized_weight
from planish.reference.packing import pack_nibbles
from planish.reference.quantized import QuantizedWeight, to_layout
from planish.reference.scheme import Scheme

EPS = float(np.finfo(np.float32).eps)


def make_scheme(bits: int, size: int, dtype: str, offset: bool, act_order: bool) -> Scheme:
    return Scheme(
        bits=bits,
        granularity="per_channel" if size == -1 else "per_group",
        group_size=size,
        symmetric=not offset,
        scale_dtype=dtype,
        offset=offset,
        act_order=act_order,
    )


SIZES = (16, 32, 64, 128, 256, 1024)
KINDS = (  # bits, group sizes, offset, act order
    (8, SIZES, False, False),
    (8, (*SIZES, -1), True, False),
    (4, (*SIZES[1:], -1), True, False),
    (4, (*SIZES[1:], -1), False, True),
    (8, SIZES, True, True),
)
DTYPES = itertools.cycle(["float16", "float32"])
FOREIGN = [
    make_scheme(bits, size, next(DTYPES), offset, order)
    for bits, sizes, offset, order in KINDS
    for size in sizes
]
SHAPES = ((1, 75), (2, 300), (8, 160), (9, 300), (17, 75), (33, 1100), (50, 300))  # T, K


def foreign_layer(scheme: Scheme, inputs: int, outputs: int, rng: np.random.Generator) -> Linear:
    """Random codes of the whole range, scales of both signs, offsets and a bias."""
    groups = outputs, num_groups(inputs, scheme.group_size)
    signed, high = scheme.bits == 8 and not scheme.offset, 2**scheme.bits
    codes = rng.integers(0, high, (outputs, inputs)) - (128 if signed else 0)
    scale = rng.standard_normal(groups) * 0.02
    weight = QuantizedWeight(
        codes=codes.astype(np.int8) if signed else codes.astype(np.uint8),
        scale=scale.astype(scheme.scale_dtype),
        offset=(scale * -high / 2).astype(np.float32) if scheme.offset else None,
        permutation=rng.permutation(inputs).astype(np.int32) if scheme.act_order else None,
        scheme=scheme,
        shape=(outputs, inputs),
    )
    packed = weight.codes if scheme.bits == 8 else pack_nibbles(weight.codes)
    return Linear(replace(weight, codes=packed), rng.standard_normal(outputs).astype(np.float32))


def place(layer: Linear) -> Linear:
    return replace(layer, weight=to_layout(layer.weight, "tiles"))


@jax.jit(static_argnums=2)
def call(x: jax.Array, layers: tuple[Linear, ...], isa: str) -> tuple[jax.Array, ...]:
    return native.linears(x, layers, isa=isa)


def run(x: np.ndarray, layers: Sequence[Linear], isa: str) -> list[np.ndarray]:
    return [np.asarray(y) for y in call(jnp.asarray(x), tuple(map(place, layers)), isa)]


def expect_near(x: np.ndarray, layer: Linear, found: np.ndarray, isa: str) -> None:
    """As y = sum of x q scale + x offset in float64, but for float32's rounding."""
    weight, wide = quantized_weight(layer), x.astype(np.float64)
    dense, sizes = widen(weight)
    if weight.permutation is not None:
        wide = wide[..., weight.permutation]
    off = np.abs(found - (wide @ dense.T + layer.bias))
    assert (off <= 16 * EPS * (np.abs(wide) @ sizes.T + np.abs(layer.bias))).all(), isa


@pytest.mark.matrix(7)
@pytest.mark.again
@pytest.mark.parametrize("scheme", FOREIGN, ids=str)
def test_what_other_programs_write_is_exact_but_for_float32s_rounding(kernels, scheme):
    rng = np.random.default_rng(6)
    for shape in (FOREIGN.index(scheme), FOREIGN.index(scheme) + 3):
        tokens, inputs = SHAPES[shape % len(SHAPES)]
        layer = foreign_layer(scheme, inputs, 50, rng)
        x = rng.standard_normal((1, tokens, inputs)).astype(np.float32)
        for isa in kernels:
            expect_near(x, layer, run(x, (layer,), isa)[0], isa)


@pytest.mark.matrix(8)
@pytest.mark.again
@pytest.mark.parametrize("scheme", FOREIGN[::4], ids=str)
def test_its_rows_do_not_depend_on_how_they_are_split_into_calls(kernels, scheme):
    rng = np.random.default_rng(7)
    layer = foreign_layer(scheme, 300, 50, rng)
    x = rng.standard_normal((1, 29, 300)).astype(np.float32)
    for isa in kernels:
        splits = [10, 19] if BY_NAME[isa].matmul == "amx" else [1, 3, 10, 18]
        parts = [run(part, (layer,), isa)[0] for part in np.split(x, splits, axis=1)]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), run(x, (layer,), isa)[0])


@pytest.mark.matrix(2)
@pytest.mark.again
@pytest.mark.parametrize("tokens", [1, 12])
def test_linears_of_one_call_may_have_the_same_order_others_or_none(kernels, tokens):
    """q and k share a gather; v has another order, and a fourth linear none."""
    rng = np.random.default_rng(8)
    ordered = Scheme(bits=4, granularity="per_group", group_size=32, act_order=True)
    offset = Scheme(bits=8, granularity="per_group", group_size=32, symmetric=False, offset=True)
    layers = [foreign_layer(ordered, 160, outputs, rng) for outputs in (50, 16, 33)]
    shared = replace(layers[1].weight, permutation=layers[0].weight.permutation.copy())
    layers[1] = replace(layers[1], weight=shared)
    layers.append(foreign_layer(offset, 160, 20, rng))
    x = rng.standard_normal((1, tokens, 160)).astype(np.float32)
    assert native.can_fuse([place(layer) for layer in layers])
    for isa in kernels:
        for layer, found in zip(layers, run(x, layers, isa), strict=True):
            np.testing.assert_array_equal(found, run(x, (layer,), isa)[0], err_msg=isa)


@pytest.mark.again
def test_gate_and_up_may_have_other_orders(kernels):
    rng = np.random.default_rng(9)
    scheme = Scheme(bits=4, granularity="per_group", group_size=32, act_order=True)
    gate, up = (foreign_layer(scheme, 160, 50, rng) for _ in range(2))
    x = rng.standard_normal((1, 12, 160)).astype(np.float32)
    placed = (place(gate), place(up))
    for isa in kernels:
        found = native.linears(jnp.asarray(x), placed, gated=True, isa=isa)[0]
        act, inner = (run(x, (layer,), isa)[0] for layer in (gate, up))
        np.testing.assert_allclose(found, act / (1 + np.exp(-act)) * inner, rtol=1e-5, atol=1e-4)


def layer_around(zero: int, inputs: int, granularity: str = "per_channel") -> Linear:
    """W8A8 of 50 outputs, codes -128..127, whose static inputs have a zero point."""
    rng = np.random.default_rng(10)
    scheme = Scheme(
        bits=8,
        granularity=granularity,
        activation="static",
        full_range=True,
        input_zero_point=True,
    )
    codes = rng.integers(-128, 128, (50, inputs)).astype(np.int8)
    codes[0], codes[1] = -128, 127
    scale = rng.standard_normal((50 if granularity == "per_channel" else 1, 1)) * 0.02
    weight = QuantizedWeight(
        codes=codes, scale=scale.astype(np.float32), scheme=scheme, shape=codes.shape
    )
    static = np.float32([0.02]), np.array([zero], np.int8)
    return Linear(weight, rng.standard_normal(50).astype(np.float32), *static)


@pytest.mark.matrix(8)
@pytest.mark.again
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("zero", [-128, -3, 0, 127])
def test_inputs_with_a_zero_point_are_bit_identical(kernels, zero, granularity):
    """Codes of -128 on both sides, clipped inputs at both ends, by lanes and by tiles."""
    rng = np.random.default_rng(11)
    for tokens, inputs in ((1, 75), (9, 300), (37, 1100)):
        layer = layer_around(zero, inputs, granularity)
        x = rng.standard_normal((1, tokens, inputs)).astype(np.float32) * 2
        x[:, ::3] = -9
        for isa in kernels:
            found = run(x, (layer,), isa)[0]
            np.testing.assert_array_equal(found[0], linear(x[0], layer), err_msg=isa)


REFUSED = {
    "a zero point of another type": (
        {"activation_zero_point": np.zeros(1, np.uint8)},
        "has a type",
    ),
    "two zero points": ({"activation_zero_point": np.zeros(2, np.int8)}, "is [2], expected 1"),
    "no zero point": ({"activation_zero_point": None}, "INT8 weights with sums of their codes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_zero_point_that_does_not_fit_is_named(kernels, name):
    changes, expected = REFUSED[name]
    layer = replace(place(layer_around(3, 75)), **changes)
    with pytest.raises(Exception) as caught:  # noqa: PT011  (jax chooses the class)
        jax.block_until_ready(native.linears(jnp.ones((1, 2, 75)), (layer,)))
    assert expected in str(caught.value)


def test_sums_of_codes_that_do_not_fit_are_named(kernels):
    layer = place(layer_around(3, 75))
    short = replace(layer.weight, code_sums=layer.weight.code_sums[:2])
    missing = replace(layer.weight, code_sums=None)
    for weight, expected in ((short, "code sums is [2, 16], expected 64"), (missing, "sums of")):
        with pytest.raises(Exception) as caught:  # noqa: PT011  (jax chooses the class)
            jax.block_until_ready(
                native.linears(jnp.ones((1, 2, 75)), (replace(layer, weight=weight),))
            )
        assert expected in str(caught.value)
