"""Codes and groups as writers need them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.reference.files.export.codes import (
    finer_size,
    refine,
    regrouped,
    signed_codes,
    unsigned_codes,
    zero_points,
)
from planish.reference.files.formats.words import pack_fields, unpack_fields
from planish.reference.grids import int4_codes, int4_parameters
from planish.reference.quantized import dequantize, from_codes, to_layout
from planish.reference.scheme import int4, int8


def weight_of(rows, cols, scheme, seed=0):
    """A random weight on a grid, its scales in the scheme's type."""
    w = np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32)
    if scheme.bits == 8:
        scale = np.abs(w).max(axis=1, keepdims=True) / np.float32(127)
        return from_codes(np.rint(w / scale).astype(np.int8), scale, None, scheme)
    rule = "signed" if scheme.symmetric else "minmax"
    scale, zero = int4_parameters(w, scheme.group_size, rule, np.dtype(scheme.scale_dtype))
    return from_codes(int4_codes(w, scale, zero, scheme.group_size), scale, zero, scheme)


@pytest.mark.parametrize(
    ("scheme", "cols", "sizes", "expected"),
    [
        (int4(128), 256, (-1, 32, 64, 128), 128),
        (int4(256), 512, (-1, 32, 64, 128), 128),
        (int4(64), 96, (-1, 32, 64, 128), 32),  # a short last group
        (int4(32), 40, (-1, 32, 64, 128), None),
        (int4(32), 24, (-1, 32, 64, 128), -1),  # the group is the row
        (int4(-1), 96, (-1, 32), -1),
        (int4(-1), 96, (32, 64, 128), 32),
        (int4(32), 96, (64, 128), None),
        (int4(1024), 192, (32, 64, 128), 64),
    ],
)
def test_the_coarsest_size_that_divides_the_groups_and_the_inputs(scheme, cols, sizes, expected):
    assert finer_size(scheme, cols, sizes) == expected


@given(
    size=st.sampled_from([-1, 64, 128, 256]),
    cols=st.sampled_from([32, 96, 160, 256]),
    symmetric=st.booleans(),
)
def test_finer_groups_change_no_number(size, cols, symmetric):
    scheme = int4(size, symmetric=symmetric)
    weight = weight_of(5, cols, scheme)
    fine = refine(weight, regrouped(scheme, 32))
    assert fine.scale.shape == (5, cols // 32)
    np.testing.assert_array_equal(dequantize(fine), dequantize(weight))


def test_a_scale_of_the_whole_tensor_is_repeated_in_each_row():
    weight = weight_of(3, 8, int8())
    one = from_codes(weight.codes, weight.scale[:1], None, int8("per_tensor"))
    fine = refine(one, int8())
    assert fine.scale.shape == (3, 1)
    np.testing.assert_array_equal(dequantize(fine), dequantize(one))


def test_coarser_groups_are_refused():
    weight = weight_of(2, 128, int4(32))
    with pytest.raises(ValueError, match="groups of 32 inputs cannot be held in groups of 64"):
        refine(weight, regrouped(weight.scheme, 64))


@pytest.mark.parametrize("layout", ["canonical", "tiles"])
def test_codes_are_whole_in_both_signs(layout):
    weight = to_layout(weight_of(5, 37, int4(32, symmetric=False)), layout)
    unsigned, signed = unsigned_codes(weight), signed_codes(weight)
    assert unsigned.dtype == np.uint8
    assert signed.dtype == np.int8
    assert unsigned.shape == (5, 37)
    np.testing.assert_array_equal(signed, unsigned.astype(np.int8) - 8)
    eight = to_layout(weight_of(5, 37, int8()), layout)
    np.testing.assert_array_equal(unsigned_codes(eight), signed_codes(eight).astype(int) + 128)


def test_zero_points_that_are_not_stored_are_the_middle():
    assert (zero_points(weight_of(2, 64, int4(32))) == 8).all()
    assert (zero_points(weight_of(2, 64, int8())) == 128).all()


@given(st.sampled_from([4, 8]), st.integers(1, 5), st.integers(1, 20), st.integers(0, 2**31))
def test_packed_fields_are_unpacked_as_they_were(bits, rows, count, seed):
    fields = np.random.default_rng(seed).integers(0, 2**bits, (rows, count)).astype(np.uint8)
    words = pack_fields(fields, bits)
    assert words.dtype == np.int32
    assert words.shape == (rows, -(-count * bits // 32))
    np.testing.assert_array_equal(unpack_fields(words, bits, count), fields)


def test_the_first_field_is_in_the_lowest_bits():
    assert pack_fields(np.array([[1, 2, 3]], np.uint8), 4).tolist() == [[0x321]]
    assert pack_fields(np.array([[1, 2, 255, 0, 5]], np.uint8), 8).tolist() == [[0xFF0201, 5]]
