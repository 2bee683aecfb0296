"""The native linears against the reference's: quantized ones bit for bit, on every set.

compare/conformance/kernels.py draws its own thousand cases, of one linear each; these are weights
that the recipes make, several linears to a call, under one compiled program for each kind.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import planish.fast.model.weights  # noqa: F401 (makes pytrees of the reference's types)
from planish.fast.native import linear as native
from planish.fast.native.instruction_sets import BY_NAME
from planish.reference.grids import expand_groups
from planish.reference.linear import Linear, linear, quantized_weight
from planish.reference.quantize.methods.rtn import quantize_weight
from planish.reference.quantize.recipe import recipe
from planish.reference.quantized import QuantizedWeight, centred_codes, to_layout
from tests.fast.schemes import forced

CASES = 1000  # in all, over the kinds and the instruction sets
EPS = float(np.finfo(np.float32).eps)
SHAPES = (  # sequences, tokens, inputs, outputs of each linear
    (1, 1, 75, (33, 16, 1)),  # one row; no size divides another
    (1, 13, 300, (50, 7, 97)),  # a partial last group; blocks of 8, 4 and 1 rows
    (2, 5, 160, (100,)),  # per_tensor: a scale for each sequence
)


@dataclass(frozen=True)
class Kind:
    """A recipe and what of it is changed; the cases of a kind share a compiled program."""

    recipe: str
    changes: tuple[tuple[str, object], ...]
    shape: tuple[int, int, int, tuple[int, ...]]

    def __str__(self) -> str:
        return "-".join([self.recipe, *(str(value) for _, value in self.changes)])


def kinds() -> list[Kind]:
    """Every combination, the shapes in turns."""
    int8 = itertools.product(
        [("granularity", name) for name in ("per_channel", "per_tensor")],
        [("activation", name) for name in ("per_token", "per_tensor", "static")],
    )
    int4 = itertools.product(
        [("activation", name) for name in ("per_group", "per_token")],
        [("group_size", size) for size in (32, 64, 128, -1)],
        [("rule", name) for name in ("signed", "minmax")],
        [("scale_dtype", name) for name in ("float16", "float32")],
    )
    found = [*(("W8A8", changes) for changes in int8), *(("W4A8", changes) for changes in int4)]
    every = itertools.product(enumerate(found), range(2))
    return [Kind(*one, SHAPES[(i + 2 * more) % 3]) for (i, one), more in every]


KINDS = kinds()
WEIGHT_ONLY = [
    Kind("W8A16", (), SHAPES[1]),
    Kind("W8A16", (("granularity", "per_tensor"),), SHAPES[0]),
    Kind("W4A16", (("group_size", 64),), SHAPES[1]),
    Kind("W4A16", (("group_size", 32), ("rule", "minmax"), ("scale_dtype", "float32")), SHAPES[0]),
    Kind("W4A16", (("group_size", -1),), SHAPES[2]),
]


def random_layers(kind: Kind, rng: np.random.Generator) -> tuple[Linear, ...]:
    """As the recipe quantizes Gaussian weights; in one of three, all codes are then made equal."""
    changes = dict(kind.changes)
    granularity = changes.pop("granularity", None)
    chosen = recipe(kind.recipe, **changes)
    scheme = chosen.default
    scheme = scheme if granularity is None else replace(scheme, granularity=granularity)
    _, _, inputs, outputs = kind.shape
    layers = []
    for n in outputs:
        dense = rng.standard_normal((n, inputs)).astype(np.float32)
        weight = quantize_weight(dense, scheme, chosen.rule)
        bias = rng.standard_normal(n).astype(np.float32)
        static = np.float32([0.02]) if scheme.activation == "static" else None
        layers.append(Linear(equal_codes(weight, rng), bias, static))
    return tuple(layers)


def equal_codes(weight: QuantizedWeight, rng: np.random.Generator) -> QuantizedWeight:
    """The weight, or all its codes the smallest, zero or the largest: 0 or 15 of INT4."""
    if rng.integers(3):
        return weight
    code = rng.choice([-127, 0, 127] if weight.scheme.bits == 8 else [0x00, 0xFF])
    return replace(weight, codes=np.full_like(weight.codes, code))


def random_rows(kind: Kind, rng: np.random.Generator) -> np.ndarray:
    """x [B, T, K]: Gaussian, some rows of one value, of its two signs, or of zeros."""
    sequences, tokens, inputs, _ = kind.shape
    x = rng.standard_normal((sequences, tokens, inputs)).astype(np.float32)
    for row in np.argwhere(rng.random((sequences, tokens)) < 0.3):
        x[*row] = rng.choice([[3.0, 3.0], [3.0, -3.0], [0.0, 0.0]])[rng.integers(0, 2, inputs)]
    return x


def run(x: np.ndarray, layers: Sequence[Linear], isa: str) -> list[np.ndarray]:
    placed = tuple(replace(layer, weight=to_layout(layer.weight, "tiles")) for layer in layers)
    return [np.asarray(y) for y in call(jnp.asarray(x), placed, isa)]


@jax.jit(static_argnums=2)
def call(x: jax.Array, layers: tuple[Linear, ...], isa: str) -> tuple[jax.Array, ...]:
    if layers[0].activation == "static":  # each linear has another activation scale
        return tuple(native.linears(x, (layer,), isa=isa)[0] for layer in layers)
    return native.linears(x, layers, isa=isa)


@pytest.mark.again
@pytest.mark.matrix(26)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_random_linears_are_the_references_bit_for_bit(kernels, kind):
    rng = np.random.default_rng(KINDS.index(kind))
    for _ in range(-(-CASES // (len(KINDS) * len(kernels)))):
        layers, x = random_layers(kind, rng), random_rows(kind, rng)
        expected = [np.stack([linear(rows, layer) for rows in x]) for layer in layers]
        for isa in kernels:
            for found, wanted in zip(run(x, layers, isa), expected, strict=True):
                np.testing.assert_array_equal(found, wanted, err_msg=isa)


@pytest.mark.again
@pytest.mark.parametrize("name", ["W8A8", "W8A16"])
@pytest.mark.parametrize("constant", [False, True])
def test_codes_of_other_programs_may_be_minus_128_and_scales_negative(kernels, name, constant):
    rng = np.random.default_rng(5)
    kind = Kind(name, (), SHAPES[1])
    (layer, *_), x = random_layers(kind, rng), random_rows(kind, rng)
    shape = layer.weight.codes.shape
    codes = np.full(shape, -128) if constant else rng.integers(-128, 128, shape)
    weight = replace(
        layer.weight,
        codes=codes.astype(np.int8),
        scale=layer.weight.scale * rng.choice(np.float32([-1, 1]), layer.weight.scale.shape),
        scheme=replace(layer.weight.scheme, full_range=True),
    )
    layer = replace(layer, weight=weight)
    expected = np.stack([linear(rows, layer) for rows in x])
    for isa in kernels:
        found = run(x, (layer,), isa)[0]
        if name == "W8A8":
            np.testing.assert_array_equal(found, expected, err_msg=isa)
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


def test_scales_of_linears_in_one_call_may_differ_in_type(kernels):
    """As where float16 cannot hold one linear's (reference/grids.py)."""
    rng = np.random.default_rng(3)
    kind = Kind("W4A8", (("group_size", 32),), SHAPES[1])
    first, *rest = random_layers(kind, rng)
    wide = replace(first.weight, scale=first.weight.scale.astype(np.float32))
    layers, x = (replace(first, weight=wide), *rest), random_rows(kind, rng)
    assert rest and native.can_fuse(
        [replace(each, weight=to_layout(each.weight, "tiles")) for each in layers]
    )
    expected = [np.stack([linear(rows, layer) for rows in x]) for layer in layers]
    for found, wanted in zip(run(x, layers, kernels[0]), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.again
@pytest.mark.parametrize("kind", WEIGHT_ONLY, ids=str)
def test_weight_only_linears_are_exact_but_for_float32s_rounding(kernels, kind):
    rng = np.random.default_rng(0)
    for _ in range(8):
        layers = random_layers(kind, rng)
        x = rng.standard_normal((*kind.shape[:2], kind.shape[2])).astype(np.float32)
        for isa in kernels:
            for layer, found in zip(layers, run(x, layers, isa), strict=True):
                dense, wide = dense_weight(quantized_weight(layer)), x.astype(np.float64)
                magnitude = np.abs(wide) @ np.abs(dense).T + np.abs(layer.bias)
                off = np.abs(found - (wide @ dense.T + layer.bias))
                assert (off <= 16 * EPS * magnitude).all(), isa


def dense_weight(weight: QuantizedWeight) -> np.ndarray:
    """(q - z) * scale, float64 [N, K]."""
    scale = weight.scale.astype(np.float64)
    return centred_codes(weight) * expand_groups(scale, weight.shape[1], weight.scheme.group_size)


SPLIT = WEIGHT_ONLY + [  # per_tensor depends on the other rows by its definition
    kind
    for kind in KINDS
    if re.search("W8A8-.*(token|static)|32-minmax-float16|-1-signed", str(kind))
]


@pytest.mark.again
@pytest.mark.matrix(15)
@pytest.mark.parametrize("kind", {str(kind): kind for kind in SPLIT}.values(), ids=str)
def test_a_rows_result_does_not_depend_on_how_rows_are_split_into_calls(kernels, kind):
    """Matrix tiles add floats in their own order, and need more than 8 rows."""
    weight_only = kind in WEIGHT_ONLY
    kind = replace(kind, shape=(1, 29, *kind.shape[2:]))
    rng = np.random.default_rng(1)
    layers, x = random_layers(kind, rng), random_rows(kind, rng)
    for isa in kernels:
        all_rows = run(x, layers, isa)
        by_tiles = BY_NAME[isa].matmul == "amx" and weight_only
        splits = [10, 19] if by_tiles else [1, 3, 10, 18]
        parts = [run(part, layers, isa) for part in np.split(x, splits, axis=1)]
        for i, y in enumerate(all_rows):
            np.testing.assert_array_equal(np.concatenate([p[i] for p in parts], axis=1), y)


@pytest.mark.again
def test_linears_of_one_call_are_those_of_calls_of_their_own(kernels):
    kind = next(kind for kind in KINDS if str(kind).startswith("W4A8-per_group-64"))
    rng = np.random.default_rng(2)
    kind = replace(kind, shape=SHAPES[1])
    layers, x = random_layers(kind, rng), random_rows(kind, rng)
    for isa in kernels:
        for layer, y in zip(layers, run(x, layers, isa), strict=True):
            np.testing.assert_array_equal(run(x, (layer,), isa)[0], y)


def of(**fields) -> tuple[jax.Array, Linear]:
    """x and a W4A8 linear with stored zero points, some of whose fields are replaced."""
    chosen = recipe("W4A8", group_size=32, rule="minmax")
    dense = np.random.default_rng(0).standard_normal((20, 96)).astype(np.float32)
    weight = {key: fields.pop(key) for key in ("scale", "zero_point") if key in fields}
    weight["scheme"] = forced(chosen.default, **fields.pop("scheme", {}))
    x = jnp.ones((1, 3, 96), fields.pop("x", jnp.float32))
    tiled = replace(to_layout(quantize_weight(dense, chosen.default), "tiles"), **weight)
    return x, replace(Linear(tiled, np.zeros(20, np.float32)), **fields)


REFUSED = {  # in addition to those of test_linear.py
    "x of another type": ({"x": jnp.int32}, "x has a type"),
    "scales of another type": ({"scale": np.ones((2, 3, 16), np.int32)}, "scale has a type"),
    "zero points of fewer groups": (
        {"zero_point": np.zeros((2, 1, 16), np.uint8)},
        "zero_point is [2, 1, 16], expected 96 entries",
    ),
    "zero points of another type": (
        {"zero_point": np.zeros((2, 3, 16), np.int8)},
        "zero_point has a type",
    ),
    "a bias of another type": ({"bias": np.zeros(20, np.float16)}, "bias has a type"),
    "two activation scales": (
        {"scheme": {"activation": "static"}, "activation_scale": np.ones(2, np.float32)},
        "activation scale is [2], expected 1 entries",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_buffer_that_does_not_fit_is_named_and_the_next_call_works(kernels, name):
    changes, expected = REFUSED[name]
    x, layer = of(**dict(changes))
    with pytest.raises(Exception) as caught:  # noqa: PT011  (jax chooses the class)
        jax.block_until_ready(native.linears(x, (layer,)))
    assert expected in str(caught.value)
    x, layer = of()
    assert np.isfinite(native.linears(x, (layer,))[0]).all()
