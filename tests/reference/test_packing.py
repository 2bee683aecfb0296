"""Nibbles in bytes: the literal layout and the round trip."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from reference.packing import pack_nibbles, unpack_nibbles

CODES = arrays(
    np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 33)), elements=st.integers(0, 15)
)


def test_the_low_nibble_holds_the_even_input():
    packed = pack_nibbles(np.array([[1, 2, 15, 0], [8, 9, 10, 11]], np.uint8))
    assert packed.tolist() == [[0x21, 0x0F], [0x98, 0xBA]] and packed.dtype == np.uint8


def test_an_odd_width_leaves_the_last_high_nibble_0():
    assert pack_nibbles(np.array([[7, 3, 15]], np.uint8)).tolist() == [[0x37, 0x0F]]


def test_unpacking_ignores_what_lies_in_the_unused_nibble():
    assert unpack_nibbles(np.array([[0x37, 0xAF]], np.uint8), 3).tolist() == [[7, 3, 15]]


@given(CODES)
def test_packing_round_trip(codes):
    packed = pack_nibbles(codes)
    assert packed.shape == (len(codes), -(-codes.shape[1] // 2))
    assert np.array_equal(unpack_nibbles(packed, codes.shape[1]), codes)
