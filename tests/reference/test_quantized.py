"""A quantized weight in its layouts: the same weight, there and back."""

from dataclasses import replace

import numpy as np
import pytest

from planish.reference.packing import tile_int4, tile_int8
from planish.reference.quantize.methods.rtn import quantize_weight
from planish.reference.quantized import QuantizedWeight, centred_codes, dequantize, to_layout
from planish.reference.scheme import Scheme, int4, int8

DENSE = np.random.default_rng(0).standard_normal((19, 75)).astype(np.float32)
SCHEMES = [int8(), int8("per_tensor"), int4(32), int4(-1), int4(64, symmetric=False)]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_layout_changes_no_number(scheme):
    weight = quantize_weight(DENSE, scheme)
    tiles = to_layout(weight, "tiles")
    assert (tiles.layout, tiles.shape, tiles.scheme) == ("tiles", (19, 75), scheme)
    tile = tile_int8(weight.codes) if scheme.bits == 8 else tile_int4(weight.codes, 75)
    assert np.array_equal(tiles.codes, tile)
    assert np.array_equal(dequantize(tiles), dequantize(weight))
    assert np.array_equal(centred_codes(tiles), centred_codes(weight))
    back = to_layout(tiles, "canonical")
    assert np.array_equal(back.codes, weight.codes) and np.array_equal(back.scale, weight.scale)
    assert np.abs(dequantize(weight) - DENSE).max() < 0.5


def foreign(scheme: Scheme) -> QuantizedWeight:
    """A weight [19, 75] that only other programs write."""
    rng = np.random.default_rng(1)
    groups = 19, 1 if scheme.group_size == -1 else -(-75 // scheme.group_size)
    codes = rng.integers(0, 256, (19, 75 if scheme.bits == 8 else 38))
    return QuantizedWeight(
        codes=codes.astype(np.uint8 if scheme.bits == 4 or scheme.offset else np.int8),
        scale=rng.standard_normal(groups).astype(scheme.scale_dtype),
        offset=rng.standard_normal(groups).astype(np.float32) if scheme.offset else None,
        permutation=rng.permutation(75).astype(np.int32) if scheme.act_order else None,
        scheme=scheme,
        shape=(19, 75),
    )


FOREIGN = [
    Scheme(bits=8, granularity="per_group", group_size=16, scale_dtype="float16"),
    Scheme(bits=8, symmetric=False, offset=True),
    Scheme(bits=4, granularity="per_group", group_size=32, symmetric=False, offset=True),
    Scheme(bits=4, granularity="per_group", group_size=64, act_order=True),
]


@pytest.mark.parametrize("scheme", FOREIGN, ids=str)
def test_what_other_programs_write_has_tiles_with_scales_and_offsets_beside_them(scheme):
    weight = foreign(scheme)
    tiles, groups = to_layout(weight, "tiles"), weight.scale.shape[1]
    assert tiles.codes.shape == (2, 19 if scheme.bits == 8 else 10, 16, 4)
    assert tiles.codes.dtype == weight.codes.dtype and tiles.scale.shape == (2, groups, 16)
    assert tiles.permutation is weight.permutation
    if scheme.offset:
        assert tiles.offset[1, groups - 1, 2] == weight.offset[18, groups - 1]
    assert np.array_equal(dequantize(tiles), dequantize(weight))
    back = to_layout(tiles, "canonical")
    assert np.array_equal(back.scale, weight.scale)
    assert np.array_equal(centred_codes(back), centred_codes(weight))


def test_tiles_for_inputs_with_a_zero_point_have_the_sum_of_each_output_s_codes():
    scheme = Scheme(
        bits=8, activation="static", full_range=True, input_zero_point=True, scale_dtype="float32"
    )
    codes = np.full((17, 5), -128, np.int8)
    codes[16] = [1, 2, 3, 4, -20]
    scale = np.ones((17, 1), np.float32)
    weight = QuantizedWeight(codes=codes, scale=scale, scheme=scheme, shape=(17, 5))
    tiles = to_layout(weight, "tiles")
    assert tiles.code_sums.dtype == np.int32
    assert tiles.code_sums.tolist() == [[-640] * 16, [-10] + [0] * 15]
    back = to_layout(tiles, "canonical")
    assert back.code_sums is None and np.array_equal(back.codes, codes)


def test_a_weight_in_the_layout_that_is_asked_for_is_itself():
    weight = quantize_weight(DENSE, int8())
    assert to_layout(weight, "canonical") is weight


def test_there_is_no_way_back_from_a_backend_s_layout():
    weight = replace(quantize_weight(DENSE, int8()), layout="centred")
    with pytest.raises(ValueError, match="no way from the layout centred to tiles"):
        to_layout(weight, "tiles")
