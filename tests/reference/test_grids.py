"""The grids by literal small numbers (SPEC 2 and 4), then by their properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from planish.reference.errors import QuantizationError, RecipeError
from planish.reference.grids import (
    GROUP_SIZES,
    INT4_RULES,
    expand_groups,
    int4_codes,
    int4_parameters,
    int8_codes,
    int8_scale,
    num_groups,
    quantize_int8,
    to_groups,
)

F32 = np.float32
ORDINARY = st.floats(-1000, 1000, width=32).filter(lambda v: v == 0 or abs(v) > 1e-3)
ROWS = arrays(F32, st.tuples(st.integers(1, 4), st.integers(1, 70)), elements=ORDINARY)


def rows(*values: list[float]) -> np.ndarray:
    return np.array(values, F32)


def int4(w, group_size=-1, rule="signed", dtype=np.float16):
    scale, zero = int4_parameters(w, group_size, rule, dtype)
    return int4_codes(w, scale, zero, group_size), scale, zero


def restored(codes, scale, zero, group_size):
    k = codes.shape[1]
    wide = [expand_groups(a.astype(F32), k, group_size) for a in (scale, zero)]
    return (codes.astype(F32) - wide[1]) * wide[0]


# INT8


def test_int8_divides_by_127_and_rounds_half_to_even():
    codes, scale = quantize_int8(rows([127, 63.5, 62.5, 0.5, 1.5, -2.5, -127]), "per_row")
    assert scale.tolist() == [[1.0]]
    assert codes.tolist() == [[127, 64, 62, 0, 2, -2, -127]]
    assert codes.dtype == np.int8 and scale.dtype == F32


def test_int8_scale_is_the_quotient_not_a_product_with_the_reciprocal():
    absmax = np.linspace(0.1, 9, 1000, dtype=F32)
    assert np.array_equal(int8_scale(absmax), absmax / F32(127))
    assert not np.array_equal(int8_scale(absmax), absmax * (F32(1) / F32(127)))


def test_int8_codes_are_quotients_too():
    scale = np.linspace(0.01, 3, 500, dtype=F32)[:, None]
    x = (np.arange(0, 120, dtype=F32) + F32(0.5)) * scale  # near ties, where an ulp decides
    codes = int8_codes(x, scale)
    assert np.array_equal(codes, np.rint(x / scale))
    assert not np.array_equal(codes, np.rint(x * (F32(1) / scale)))


def test_int8_clips_before_the_cast():
    assert int8_codes(rows([200, -200, 127.6, -1e30]), F32(1)).tolist() == [[127, -127, 127, -127]]


def test_int8_scale_has_a_floor_of_1e_5_over_127():
    codes, scale = quantize_int8(rows([1e-6, 0, -5e-6]), "per_row")
    assert scale[0, 0] == F32(1e-5) / F32(127)
    assert codes.tolist() == [[13, 0, -64]]
    assert quantize_int8(rows([0, 0]), "per_row")[0].tolist() == [[0, 0]]


def test_int8_granularity_is_one_scale_or_one_per_row():
    x = rows([127, 1], [2, 254])
    codes, scale = quantize_int8(x, "per_row")
    assert (codes.tolist(), scale.tolist()) == ([[127, 1], [1, 127]], [[1.0], [2.0]])
    codes, scale = quantize_int8(x, "per_tensor")
    assert (codes.tolist(), scale.tolist()) == ([[64, 0], [1, 127]], [[2.0]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_an_error_that_names_tensor_and_place(bad):
    x = rows([1, 2], [3, bad])
    with pytest.raises(QuantizationError, match=r"^layer\.q: cannot be .*\(1, 1\)$"):
        quantize_int8(x, "per_row", "layer.q")
    with pytest.raises(QuantizationError, match=r"^layer\.q: .*\(1, 1\)$"):
        int4_parameters(x, -1, "signed", np.float16, "layer.q")


@given(ROWS)
def test_int8_error_is_at_most_half_a_step(x):
    codes, scale = quantize_int8(x, "per_row")
    assert (np.abs(x - codes * scale) <= scale / 2 + np.abs(x) * 1e-6).all()


@given(ROWS)
def test_int8_is_symmetric(x):
    codes, scale = quantize_int8(x, "per_row")
    mirrored, same = quantize_int8(-x, "per_row")
    assert np.array_equal(mirrored, -codes) and np.array_equal(same, scale)


@given(ROWS, st.integers(-5, 20))
def test_int8_codes_do_not_change_with_a_power_of_two(x, power):
    x[:, 0] = 1  # keeps every absmax above the floor
    codes, scale = quantize_int8(x, "per_row")
    scaled_codes, scaled = quantize_int8(x * F32(2.0**power), "per_row")
    assert np.array_equal(codes, scaled_codes)
    assert np.array_equal(scaled, scale * F32(2.0**power))


@given(ROWS)
def test_int8_rows_are_independent(x):
    codes, scale = quantize_int8(x, "per_row")
    for i in range(len(x)):
        alone, alone_scale = quantize_int8(x[i : i + 1], "per_row")
        assert np.array_equal(alone[0], codes[i]) and alone_scale[0] == scale[i]


# INT4: literal tables


@pytest.mark.parametrize(
    ("rule", "w", "scale", "zero", "codes"),
    [
        ("signed", [-8, 7, 3.5, 0.5, -0.5, 1.5], 1, 8, [0, 15, 12, 8, 8, 10]),
        ("signed", [8, -7, 1, 0], -1, 8, [0, 15, 7, 8]),
        ("signed", [-8, 8, 4], 1, 8, [0, 15, 12]),  # of equal extremes the first; 16 is clipped
        ("signed", [8, -8, 4], -1, 8, [0, 15, 4]),
        ("signed", [-4, 2, 1], 0.5, 8, [0, 12, 10]),
        ("absmax", [7.5, -7.5, 1, 0.5, 2.5], 1, 8, [15, 0, 9, 8, 10]),
        ("absmax", [-15, 3, 5], 2, 8, [0, 10, 10]),
        ("absmax7", [7, -7, 2.5, 3.5], 1, 8, [15, 1, 10, 12]),
        ("absmax7", [-14, 14, 1], 2, 8, [1, 15, 8]),
        ("minmax", [0, 15, 7.5, 1], 1, 0, [0, 15, 8, 1]),
        ("minmax", [-5, 10, 0, 0.5], 1, 5, [0, 15, 5, 5]),
        ("minmax", [7.5, 3.75], 0.5, 0, [15, 8]),  # the range includes 0, though no entry does
        ("minmax", [-7.5, -1], 0.5, 15, [0, 13]),
        ("minmax", [-6.5, 8.5], 1, 6, [0, 14]),  # z = rint(6.5) = 6
    ],
)
def test_int4_rule_by_literal_numbers(rule, w, scale, zero, codes):
    found, found_scale, found_zero = int4(rows(w), rule=rule)
    assert found_scale.tolist() == [[scale]] and found_scale.dtype == np.float16
    assert found_zero.tolist() == [[zero]] and found_zero.dtype == np.uint8
    assert found.tolist() == [codes] and found.dtype == np.uint8


@pytest.mark.parametrize("rule", INT4_RULES)
def test_a_group_of_zeros_has_scale_1_zero_8_and_codes_8(rule):
    w = np.zeros((1, 64), F32)
    w[0, 40] = -3
    codes, scale, zero = int4(w, 32, rule)
    assert (scale[0, 0], zero[0, 0]) == (1, 8)
    assert (codes[0, :32] == 8).all() and scale[0, 1] != 1


@pytest.mark.parametrize("rule", INT4_RULES)
def test_a_last_partial_group_has_its_own_scale(rule):
    w = np.concatenate([np.full(32, -8.0), np.full(8, 1.0)])[None].astype(F32)
    codes, scale, zero = int4(w, 32, rule)
    alone_codes, alone, alone_zero = int4(w[:, 32:], -1, rule)
    assert scale.shape == zero.shape == (1, 2) and codes.shape == (1, 40)
    assert scale[0, 1] == alone[0, 0] and zero[0, 1] == alone_zero[0, 0]
    assert np.array_equal(codes[:, 32:], alone_codes)


@pytest.mark.parametrize("rule", INT4_RULES)
def test_group_size_minus_1_is_the_whole_row(rule):
    w = np.random.default_rng(0).standard_normal((3, 70)).astype(F32)
    whole, whole_scale, _ = int4(w, -1, rule)
    wide, wide_scale, _ = int4(w, 128, rule)
    assert whole_scale.shape == (3, 1)
    assert np.array_equal(whole, wide) and np.array_equal(whole_scale, wide_scale)


def test_codes_are_computed_with_the_scale_as_it_is_stored():
    w = rows([10, 4.666])  # 10 / 7.5 is 1.33333 in float32 and 1.33301 in float16
    assert int4(w, rule="absmax", dtype=np.float32)[0].tolist() == [[15, 11]]
    assert int4(w, rule="absmax", dtype=np.float16)[0].tolist() == [[15, 12]]


@pytest.mark.parametrize("rule", INT4_RULES)
@pytest.mark.parametrize("value", [1e7, 1e-8, 1e-35])
def test_a_scale_that_float16_cannot_hold_becomes_float32_and_changes_no_other_code(rule, value):
    w = np.random.default_rng(3).standard_normal((3, 64)).astype(F32)
    before_codes, before, before_zero = int4(w, 32, rule)
    w[2, 32:] *= F32(value)
    codes, scale, zero = int4(w, 32, rule)
    assert (before.dtype, scale.dtype) == (np.float16, F32)
    others = np.array([[True, True], [True, True], [True, False]])
    assert np.array_equal(scale[others], before[others].astype(F32))
    assert np.array_equal(zero[others], before_zero[others])
    assert np.array_equal(codes[:2], before_codes[:2])
    assert np.array_equal(codes[2, :32], before_codes[2, :32])
    exact = int4(w[2:, 32:], 32, rule, np.float32)
    assert scale[2, 1] == exact[1][0, 0] and np.array_equal(codes[2, 32:], exact[0][0])


@pytest.mark.parametrize("rule", INT4_RULES)
def test_weights_too_small_for_a_float32_scale_are_a_group_of_zeros(rule):
    codes, scale, zero = int4(rows([1e-45, -1e-45]), rule=rule)
    assert (scale.tolist(), zero.tolist(), codes.tolist()) == ([[1]], [[8]], [[8, 8]])


def test_even_a_float32_scale_must_not_overflow():
    with pytest.raises(QuantizationError, match=r"^layer\.up: row 1 group 0: .* overflows float32"):
        int4_parameters(rows([1, 2], [3.4e38, -3.4e38]), -1, "minmax", np.float16, "layer.up")


@pytest.mark.parametrize("size", [0, -2, 33, 48, 2048])
def test_other_group_sizes_are_refused(size):
    with pytest.raises(RecipeError, match="group_size.*expected one of -1, 32"):
        int4_parameters(rows([1.0]), size, "signed")


def test_an_unknown_rule_is_refused():
    with pytest.raises(RecipeError, match="rule.*signed, absmax, absmax7, minmax.*'sign'"):
        int4_parameters(rows([1.0]), -1, "sign")


# INT4: properties


@pytest.mark.matrix(4)
@pytest.mark.parametrize("rule", INT4_RULES)
@given(ROWS)
@settings(max_examples=40)
def test_int4_error_is_at_most_half_a_step_but_where_the_grid_ends(rule, w):
    codes, scale, zero = int4(w, 32, rule, np.float32)
    step = np.abs(expand_groups(scale, w.shape[1], 32))
    slack = np.abs(w) * 1e-5 + 1e-30
    error = np.abs(w - restored(codes, scale, zero, 32))
    # signed's short side lacks one code, minmax's range is moved by the rounded zero point
    limit = {"signed": 1.0, "absmax": 0.5, "absmax7": 0.5, "minmax": 1.0}[rule]
    inside = (codes > 0) & (codes < 15)
    assert (error <= step * limit + slack).all()
    assert (error[inside] <= step[inside] / 2 + slack[inside]).all()


@pytest.mark.matrix(4)
@pytest.mark.parametrize("rule", INT4_RULES)
@given(ROWS, st.integers(-3, 4))
@settings(max_examples=40)
def test_int4_codes_do_not_change_with_a_power_of_two(rule, w, power):
    codes, scale, zero = int4(w, 32, rule, np.float32)
    again, scaled, same = int4(w * F32(2.0**power), 32, rule, np.float32)
    assert np.array_equal(codes, again) and np.array_equal(zero, same)
    empty = ~to_groups(w, 32).any(axis=2)
    assert np.array_equal(scaled, np.where(empty, F32(1), scale * F32(2.0**power)))


@pytest.mark.matrix(4)
@pytest.mark.parametrize("rule", INT4_RULES)
@given(ROWS)
@settings(max_examples=40)
def test_int4_rows_are_independent(rule, w):
    whole = int4(w, 32, rule)
    for i in range(len(w)):
        alone = int4(w[i : i + 1], 32, rule)
        assert all(np.array_equal(a[i : i + 1], b) for a, b in zip(whole, alone, strict=True))


@pytest.mark.matrix(3)
@pytest.mark.parametrize("rule", ["signed", "absmax", "absmax7"])
@given(ROWS)
@settings(max_examples=40)
def test_symmetric_rules_give_minus_w_the_negated_values(rule, w):
    here, there = int4(w, 32, rule), int4(-w, 32, rule)
    if rule == "signed":  # the sign moves into the scale
        assert np.array_equal(here[0], there[0])
    value, mirrored = restored(*here, 32), restored(*there, 32)
    ends = (here[0] == 0) | (here[0] == 15)
    assert np.array_equal(value[~ends], -mirrored[~ends])


def test_absmax7_never_uses_code_0():
    w = np.random.default_rng(1).standard_normal((50, 128)).astype(F32)
    codes = int4(w, 32, "absmax7", np.float32)[0]
    assert codes.min() == 1 and codes.max() == 15


@pytest.mark.parametrize(
    ("rule", "published"),
    [("absmax7", 0.1173), ("absmax", 0.1107), ("signed", 0.1031), ("minmax", 0.1005)],
)
def test_relative_error_on_gaussian_weights_is_the_spec_s(rule, published):
    w = np.random.default_rng(2).standard_normal((400, 1024)).astype(F32)
    error = np.sqrt(np.square(w - restored(*int4(w, 128, rule), 128)).mean() / np.square(w).mean())
    assert error == pytest.approx(published, rel=0.01)


def test_grouping_pads_the_last_group_with_zeros():
    x = np.arange(1, 34, dtype=F32)[None]
    groups = to_groups(x, 32)
    assert groups.shape == (1, 2, 32)
    assert groups[0, 1, :2].tolist() == [33, 0]
    assert num_groups(33, 32) == 2 and num_groups(32, 32) == 1 and num_groups(33, -1) == 1
    assert expand_groups(rows([5, 6]), 33, 32)[0, 30:].tolist() == [5, 5, 6]
    assert set(GROUP_SIZES) == {-1, 32, 64, 128, 256, 512, 1024}
