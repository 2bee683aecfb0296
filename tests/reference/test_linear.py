"""Every linear against the formulas of SPEC 2 and 4 as float32 loops, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.reference.errors import QuantizationError
from planish.reference.grids import int4_codes, int4_parameters, quantize_int8
from planish.reference.linear import (
    Linear,
    group_products,
    integer_product,
    linear,
    quantize_int8_groups,
)
from planish.reference.packing import pack_nibbles
from planish.reference.quantized import QuantizedWeight, centred_codes, dequantize
from planish.reference.scheme import int4, int8

F32 = np.float32
RNG = np.random.default_rng(3)


def gaussian(*shape):
    return RNG.standard_normal(shape).astype(F32)


def int8_weight(w, granularity="per_row", activation="float"):
    codes, scale = quantize_int8(w, granularity)
    scheme = int8("per_tensor" if granularity == "per_tensor" else "per_channel", activation)
    return QuantizedWeight(codes=codes, scale=scale, scheme=scheme, shape=w.shape)


def int4_weight(w, group_size, rule="minmax", dtype=np.float16, activation="float"):
    scale, zero = int4_parameters(w, group_size, rule, dtype)
    return QuantizedWeight(
        codes=pack_nibbles(int4_codes(w, scale, zero, group_size)),
        scale=scale,
        zero_point=zero if rule == "minmax" else None,
        scheme=int4(group_size, symmetric=rule != "minmax", activation=activation),
        shape=w.shape,
    )


def nibble(weight, n, k):
    byte = int(weight.codes[n, k // 2])
    return byte >> 4 if k % 2 else byte & 15


def zero_point(weight, n, g):
    return 8 if weight.zero_point is None else int(weight.zero_point[n, g])


def slow_int8(x, layer):
    """y = (f32(sum) * a_scale) * w_scale + b, one entry at a time."""
    weight, y = layer.weight, np.zeros((len(x), layer.weight.shape[0]), F32)
    largest = F32(max(np.abs(x).max(), F32(1e-5)))
    for t, row in enumerate(x):
        if layer.activation == "per_token":
            largest = max(F32(np.abs(row).max()), F32(1e-5))
        a = layer.activation_scale[0] if layer.activation == "static" else largest / F32(127)
        for n in range(y.shape[1]):
            q = [int(np.clip(np.rint(v / a), -127, 127)) for v in row]
            total = sum(i * int(j) for i, j in zip(q, weight.codes[n], strict=True))
            s = weight.scale[n if len(weight.scale) > 1 else 0, 0]
            y[t, n] = F32(F32(F32(total) * a) * s)
            if layer.bias is not None:
                y[t, n] = F32(y[t, n] + layer.bias[n])
    return y


def slow_int4(x, layer, size):
    """The two formulas of W4A8, one entry at a time, groups ascending."""
    weight, y = layer.weight, np.zeros((len(x), layer.weight.shape[0]), F32)
    starts = range(0, x.shape[1], size)
    for t, row in enumerate(x):
        scales = [F32(max(np.abs(row[s : s + size]).max(), F32(1e-5)) / F32(127)) for s in starts]
        if layer.activation == "per_token":
            scales = [F32(max(np.abs(row).max(), F32(1e-5)) / F32(127))] * len(starts)
        for n in range(y.shape[1]):
            sum_ = F32(0)
            for g, (start, a) in enumerate(zip(starts, scales, strict=True)):
                total = sum(
                    int(np.clip(np.rint(row[k] / a), -127, 127))
                    * (nibble(weight, n, k) - zero_point(weight, n, g))
                    for k in range(start, min(start + size, len(row)))
                )
                part = F32(F32(total) * F32(weight.scale[n, g]))
                per_group = layer.activation == "per_group"
                sum_ = F32(sum_ + (F32(part * a) if per_group else part))
            y[t, n] = sum_ if layer.activation == "per_group" else F32(sum_ * scales[0])
            if layer.bias is not None:
                y[t, n] = F32(y[t, n] + layer.bias[n])
    return y


def test_float_linear_is_x_w_transposed_plus_b():
    layer = Linear(np.array([[1, 2], [3, 4], [0, -1]], F32), np.array([10, 20, 30], F32))
    assert linear(np.array([[1, 1], [2, 0]], F32), layer).tolist() == [[13, 27, 29], [12, 26, 30]]


@pytest.mark.parametrize("granularity", ["per_row", "per_tensor"])
@pytest.mark.parametrize("activation", ["per_token", "per_tensor", "static"])
@pytest.mark.parametrize("bias", [False, True])
def test_int8_linear_is_the_formula_bit_for_bit(granularity, activation, bias):
    x, w = gaussian(3, 21) * F32(4), gaussian(5, 21)
    scale = np.array([0.05], F32) if activation == "static" else None  # small enough to clip
    layer = Linear(int8_weight(w, granularity, activation), gaussian(5) if bias else None, scale)
    found = linear(x, layer)
    assert found.dtype == F32 and np.array_equal(found, slow_int8(x, layer))


@pytest.mark.parametrize("activation", ["per_token", "per_group"])
@pytest.mark.parametrize("rule", ["signed", "minmax"])
@pytest.mark.parametrize(("group_size", "k"), [(32, 64), (32, 77), (64, 40), (-1, 45)])
def test_w4a8_is_the_formula_bit_for_bit(activation, rule, group_size, k):
    x, w = gaussian(2, k) * F32(3), gaussian(4, k)
    for dtype, bias in ((np.float16, None), (np.float32, gaussian(4))):
        layer = Linear(int4_weight(w, group_size, rule, dtype, activation), bias)
        found = linear(x, layer)
        expected = slow_int4(x, layer, k if group_size == -1 else group_size)
        assert found.dtype == F32 and np.array_equal(found, expected)


def test_dequantized_int4_is_code_minus_zero_times_scale():
    scale, zero = np.array([[0.5, -2]], np.float16), np.array([[8, 3]], np.uint8)
    codes = np.full((1, 34), 10, np.uint8)
    codes[0, :2], codes[0, 32:] = (0, 15), (0, 15)
    weight = QuantizedWeight(
        codes=pack_nibbles(codes),
        scale=scale,
        zero_point=zero,
        scheme=int4(32, symmetric=False),
        shape=(1, 34),
    )
    assert centred_codes(weight)[0, [0, 1, 2, 32, 33]].tolist() == [-8, 7, 2, -3, 12]
    assert dequantize(weight)[0, [0, 1, 2, 32, 33]].tolist() == [-4, 3.5, 1, 6, -24]


def test_int4_without_zero_points_has_8_everywhere():
    scale, eights = np.array([[0.5, -2]], np.float16), np.full((1, 2), 8, np.uint8)
    packed = pack_nibbles(np.arange(34, dtype=np.uint8)[None] % 16)
    weight = QuantizedWeight(codes=packed, scale=scale, scheme=int4(32), shape=(1, 34))
    assert centred_codes(weight)[0, :3].tolist() == [-8, -7, -6]
    assert centred_codes(weight).dtype == np.int8
    told = replace(weight, zero_point=eights)
    assert np.array_equal(dequantize(weight), dequantize(told))


def test_dequantized_int8_is_code_times_scale():
    codes, scale = np.array([[2, -127]], np.int8), np.array([[0.5]], F32)
    weight = QuantizedWeight(codes=codes, scale=scale, scheme=int8(), shape=(1, 2))
    assert dequantize(weight).tolist() == [[1, -63.5]]
    assert np.array_equal(centred_codes(weight), weight.codes)


@pytest.mark.parametrize("make", [int8_weight, lambda w: int4_weight(w, 32)])
def test_weight_only_linears_multiply_float_activations(make):
    x, w = gaussian(4, 70), gaussian(6, 70)
    layer = Linear(make(w), gaussian(6))
    expected = x.astype(np.float64) @ dequantize(layer.weight).astype(np.float64).T + layer.bias
    assert np.allclose(linear(x, layer), expected, rtol=0, atol=1e-5)
    assert np.abs(linear(x, layer) - (x @ w.T + layer.bias)).max() > 1e-3  # it is quantized


@given(st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_integer_product_equals_the_integer_einsum(k, seed):
    rng = np.random.default_rng(seed)
    x, w = rng.integers(-127, 128, (3, k), np.int8), rng.integers(-127, 128, (4, k), np.int8)
    slow = np.einsum("tk,nk->tn", x.astype(np.int64), w.astype(np.int64))
    found = integer_product(x, w)
    assert found.dtype == np.int32 and np.array_equal(found, slow)


def test_integer_product_is_exact_at_the_largest_width():
    x = np.full((1, 133_144), 127, np.int8)
    assert integer_product(x, x).tolist() == [[133_144 * 127 * 127]]
    assert integer_product(x, -x).tolist() == [[-133_144 * 127 * 127]]


def test_group_products_add_up_to_the_whole_product():
    weight = int4_weight(gaussian(3, 77), 32)
    codes = RNG.integers(-127, 128, (2, 77), np.int8)
    parts = group_products(codes, weight)
    assert len(parts) == 3
    assert np.array_equal(sum(parts), integer_product(codes, centred_codes(weight)))


def test_activations_per_group_have_one_scale_per_token_and_group():
    x = np.zeros((1, 40), F32)
    x[0, 3], x[0, 35] = -127, 254
    codes, scale = quantize_int8_groups(x, 32)
    assert scale.tolist() == [[1, 2]] and codes[0, 3] == -127 and codes[0, 35] == 127


def test_tokens_are_independent_but_under_per_tensor():
    x, w = gaussian(4, 40), gaussian(3, 40)
    int4_per_group = int4_weight(w, 32, activation="per_group")
    for weight in (int8_weight(w, activation="per_token"), int4_per_group):
        layer = Linear(weight)
        alone = np.concatenate([linear(row[None], layer) for row in x])
        assert np.array_equal(alone, linear(x, layer))


@pytest.mark.parametrize("activation", ["per_token", "per_tensor", "static"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_int8_refuses_activations_that_are_not_finite(activation, bad):
    weight = int8_weight(gaussian(2, 4), activation=activation)
    layer = Linear(weight, None, np.array([1], F32))
    with pytest.raises(QuantizationError, match="activations.*finite"):
        linear(np.array([[1, bad, 3, 4]], F32), layer)


@pytest.mark.parametrize("activation", ["per_token", "per_group"])
def test_w4a8_refuses_activations_that_are_not_finite(activation):
    layer = Linear(int4_weight(gaussian(2, 40), 32, activation=activation))
    with pytest.raises(QuantizationError, match="activations.*finite"):
        linear(np.full((1, 40), np.nan, F32), layer)
