"""Some outputs of a linear: the same numbers as those of the whole one, views where they can be."""

from __future__ import annotations

import numpy as np
import pytest

from planish.fast.parallel.cut import Rows, cut_linear, share_rows
from planish.reference.linear import Linear, linear
from planish.reference.model.experts import linear_of, stack_linears
from planish.reference.quantize.methods.rtn import quantize_weight
from planish.reference.quantized import QuantizedWeight, to_layout
from planish.reference.scheme import Scheme, int4, int8

SCHEMES = {
    "W8A8": int8(activation="per_token"),
    "O2": int8("per_tensor", "per_tensor"),
    "W4A8": int4(32, activation="per_group"),
    "W4A16": int4(32, symmetric=False),
}
OUTPUTS, INPUTS = 70, 96  # five tiles, the last of six outputs


def make_linear(scheme, outputs=OUTPUTS, layout="tiles", seed=0):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((outputs, INPUTS)).astype(np.float32)
    bias = rng.standard_normal(outputs).astype(np.float32)
    if scheme is None:
        return Linear(weight, bias)
    return Linear(to_layout(quantize_weight(weight, scheme), layout), bias)


@pytest.mark.parametrize("layout", ["tiles", "canonical"])
@pytest.mark.parametrize("scheme", [None, *SCHEMES.values()], ids=["float", *SCHEMES])
@pytest.mark.parametrize("parts", [2, 3, 4])
def test_the_parts_compute_what_the_whole_does(scheme, layout, parts):
    whole = make_linear(scheme, layout=layout)
    x = np.random.default_rng(1).standard_normal((3, INPUTS)).astype(np.float32)
    shares = [cut_linear(whole, share_rows(OUTPUTS, i, parts)) for i in range(parts)]
    found = np.concatenate([linear(x, share) for share in shares], axis=1)
    assert len({found.shape for share in shares}) == 1
    expected = linear(x, whole)
    if whole.activation == "float":  # BLAS sums differently for other shapes
        np.testing.assert_allclose(found[:, :OUTPUTS], expected, rtol=1e-5, atol=1e-5)
    else:
        assert np.array_equal(found[:, :OUTPUTS], expected)
    assert not found[:, OUTPUTS:].any()


def test_tiles_of_a_mapped_file_are_views():
    whole = make_linear(SCHEMES["W4A8"], outputs=64)
    part = cut_linear(whole, share_rows(64, 1, 2))
    for name in ("codes", "scale"):
        assert np.shares_memory(getattr(part.weight, name), getattr(whole.weight, name))


@pytest.mark.parametrize("rows", [Rows(16, 32), Rows(12, 20), Rows(64, 16)], ids=str)
def test_sums_of_codes_are_those_of_the_outputs_that_remain(rows):
    scheme = Scheme(bits=8, activation="static", full_range=True, input_zero_point=True)
    codes = np.random.default_rng(2).integers(-128, 128, (OUTPUTS, INPUTS)).astype(np.int8)
    scale = np.ones((OUTPUTS, 1), np.float32)
    weight = QuantizedWeight(codes=codes, scale=scale, scheme=scheme, shape=codes.shape)
    part = cut_linear(Linear(to_layout(weight, "tiles")), rows).weight
    left = codes[rows.start : rows.start + rows.count].sum(axis=1, dtype=np.int32)
    assert part.code_sums.shape == (-(-rows.count // 16), 16)
    assert part.code_sums.ravel()[: len(left)].tolist() == left.tolist()
    assert not part.code_sums.ravel()[len(left) :].any()


def test_heads_narrower_than_a_tile_are_cut_too():
    whole = make_linear(SCHEMES["W8A8"], outputs=48)
    x = np.random.default_rng(1).standard_normal((2, INPUTS)).astype(np.float32)
    part = cut_linear(whole, Rows(12, 12))
    assert part.weight.layout == "tiles"
    assert np.array_equal(linear(x, part), linear(x, whole)[:, 12:24])


def test_every_expert_of_a_stack_is_cut():
    experts = [make_linear(SCHEMES["W4A8"], outputs=64, seed=seed) for seed in range(3)]
    cut = cut_linear(stack_linears(experts), share_rows(64, 1, 2), axis=1)
    x = np.random.default_rng(1).standard_normal((2, INPUTS)).astype(np.float32)
    for index, expert in enumerate(experts):
        assert np.array_equal(linear(x, linear_of(cut, index)), linear(x, expert)[:, 32:])


@pytest.mark.parametrize(("outputs", "parts", "count"), [(64, 2, 32), (70, 2, 48), (16, 4, 16)])
def test_every_share_has_as_many_rows(outputs, parts, count):
    shares = [share_rows(outputs, i, parts) for i in range(parts)]
    assert shares == [Rows(i * count, count) for i in range(parts)]
    assert sum(share.count for share in shares) >= outputs
