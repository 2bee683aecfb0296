"""Codes in 32-bit words: literal words, and packing as the inverse of unpacking."""

import numpy as np
import pytest

from planish.reference.files.formats.words import (
    pack_awq,
    pack_fields,
    unpack_awq,
    unpack_fields,
    words_for,
)


def words(*values):
    return np.array([values], np.uint32).view(np.int32)


def test_the_first_field_has_the_lowest_bits():
    fields = np.array([[1, 2, 3, 4, 5, 6, 7, 8, 9]], np.uint8)
    np.testing.assert_array_equal(pack_fields(fields, 4), words(0x87654321, 9))
    np.testing.assert_array_equal(pack_fields(fields[:, :5], 8), words(0x04030201, 5))


def test_a_field_of_three_bits_crosses_words():
    fields = np.full((1, 11), 7, np.uint8)
    np.testing.assert_array_equal(pack_fields(fields, 3), words(0xFFFFFFFF, 1))


def test_awq_words_have_even_columns_first():
    fields = np.arange(8, dtype=np.uint8)[None]
    np.testing.assert_array_equal(pack_awq(fields), words(0x75316420))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("count", [1, 8, 31, 33])
def test_packing_is_the_inverse_of_unpacking(bits, count):
    fields = np.random.default_rng(bits).integers(0, 2**bits, (3, count)).astype(np.uint8)
    packed = pack_fields(fields, bits)
    assert packed.shape == (3, words_for(count, bits)) and packed.dtype == np.int32
    np.testing.assert_array_equal(unpack_fields(packed, bits, count), fields)


def test_awq_packing_is_the_inverse_of_unpacking():
    fields = np.random.default_rng(0).integers(0, 16, (5, 64)).astype(np.uint8)
    np.testing.assert_array_equal(unpack_awq(pack_awq(fields)), fields)
