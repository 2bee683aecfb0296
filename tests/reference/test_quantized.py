"""A quantized weight in its layouts: the same weight, there and back."""

from dataclasses import replace

import numpy as np
import pytest

from planish.reference.packing import tile_int4, tile_int8
from planish.reference.quantize.methods.rtn import quantize_weight
from planish.reference.quantized import centred_codes, dequantize, to_layout
from planish.reference.scheme import int4, int8

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


def test_a_weight_in_the_layout_that_is_asked_for_is_itself():
    weight = quantize_weight(DENSE, int8())
    assert to_layout(weight, "canonical") is weight


def test_there_is_no_way_back_from_a_backend_s_layout():
    weight = replace(quantize_weight(DENSE, int8()), layout="centred")
    with pytest.raises(ValueError, match="no way from the layout centred to tiles"):
        to_layout(weight, "tiles")
