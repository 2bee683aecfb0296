"""Nibbles in bytes and codes in tiles: the literal layouts and the round trips."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from planish.reference.packing import (
    pack_nibbles,
    tile_groups,
    tile_int4,
    tile_int8,
    tile_shape,
    unpack_nibbles,
    untile_groups,
    untile_int4,
    untile_int8,
)

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
def test_tiles_ignore_what_lies_in_the_unused_nibble(codes):
    packed, cols = pack_nibbles(codes), codes.shape[1]
    other = packed.copy()
    other[:, -1] |= 0xA0 if cols % 2 else 0
    assert np.array_equal(tile_int4(other, cols), tile_int4(packed, cols))


@given(CODES)
def test_packing_round_trip(codes):
    packed = pack_nibbles(codes)
    assert packed.shape == (len(codes), -(-codes.shape[1] // 2))
    assert np.array_equal(unpack_nibbles(packed, codes.shape[1]), codes)


def test_where_a_code_lands_in_int8_tiles():
    """Output 17, input 9 of [18, 10]: second tile of outputs, third block of 4, row 1, byte 1."""
    codes = np.zeros((18, 10), np.int8)
    codes[17, 9], codes[0, 4] = -5, 7
    tiled = tile_int8(codes)
    assert tiled.shape == (2, 3, 16, 4) and tiled.dtype == np.int8
    assert tiled[1, 2, 1, 1] == -5 and tiled[0, 1, 0, 0] == 7
    assert np.count_nonzero(tiled) == 2


def test_where_a_code_lands_in_int4_tiles():
    """Input 8b + i is the low nibble of byte i, input 8b + 4 + i the high one."""
    codes = np.zeros((18, 17), np.uint8)
    codes[17, 9], codes[17, 13], codes[2, 16], codes[2, 7] = 5, 11, 3, 1
    tiled = tile_int4(pack_nibbles(codes), 17)
    assert tiled.shape == (2, 3, 16, 4) and tiled.dtype == np.uint8
    assert tiled[1, 1, 1].tolist() == [0, 5 | 11 << 4, 0, 0]
    assert tiled[0, 2, 2].tolist() == [3, 0, 0, 0] and tiled[0, 0, 2].tolist() == [0, 0, 0, 16]
    assert np.count_nonzero(tiled) == 3


def test_a_whole_int4_block_byte_by_byte():
    tiled = tile_int4(pack_nibbles(np.arange(8, dtype=np.uint8)[None]), 8)
    assert tiled[0, 0, 0].tolist() == [0x40, 0x51, 0x62, 0x73] and not tiled[0, 0, 1:].any()


def test_where_a_scale_lands():
    tiled = tile_groups(np.arange(36, dtype=np.float16).reshape(18, 2) + 1)
    assert tiled.shape == (2, 2, 16) and tiled.dtype == np.float16
    assert tiled[0, 0].tolist() == list(range(1, 33, 2))
    assert tiled[1, 1, :3].tolist() == [34, 36, 0] and not tiled[1, :, 2:].any()


SIZES = {"rows": st.integers(1, 50), "cols": st.integers(1, 70), "seed": st.integers(0, 999)}


@given(**SIZES)
def test_int8_tiles_round_trip(rows, cols, seed):
    codes = np.random.default_rng(seed).integers(-127, 128, (rows, cols), np.int8)
    tiled = tile_int8(codes)
    assert tiled.shape == tile_shape(rows, cols, 8) and tiled.flags.c_contiguous
    assert np.array_equal(untile_int8(tiled, rows, cols), codes)
    assert np.abs(tiled.astype(int)).sum() == np.abs(codes.astype(int)).sum()  # padding is zero


@given(**SIZES)
def test_int4_tiles_round_trip(rows, cols, seed):
    codes = np.random.default_rng(seed).integers(0, 16, (rows, cols), np.uint8)
    tiled = tile_int4(pack_nibbles(codes), cols)
    assert tiled.shape == tile_shape(rows, cols, 4) and tiled.flags.c_contiguous
    packed = untile_int4(tiled, rows, cols)
    assert np.array_equal(packed, pack_nibbles(codes)) and packed.flags.c_contiguous
    assert (tiled & 15).sum() + (tiled >> 4).sum() == codes.sum()  # padding is zero


@given(**SIZES)
def test_grouped_values_round_trip(rows, cols, seed):
    values = np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32)
    tiled = tile_groups(values)
    assert tiled.shape == (-(-rows // 16), cols, 16) and tiled.flags.c_contiguous
    assert np.array_equal(untile_groups(tiled, rows), values)


@given(**SIZES)
def test_what_lies_beyond_the_weights_in_a_tile_does_not_matter(rows, cols, seed):
    rng = np.random.default_rng(seed)
    packed = pack_nibbles(rng.integers(0, 16, (rows, cols), np.uint8))
    inside = tile_int4(pack_nibbles(np.full((rows, cols), 15, np.uint8)), cols)
    noise = rng.integers(0, 256, inside.shape, np.uint8) & ~inside
    assert np.array_equal(untile_int4(tile_int4(packed, cols) | noise, rows, cols), packed)
