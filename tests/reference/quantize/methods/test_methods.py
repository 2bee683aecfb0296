"""The table of methods: one row is all that a method needs. And round to nearest, by numbers."""

import numpy as np
import pytest

from planish.reference.errors import QuantizationError, RecipeError
from planish.reference.linear import Linear
from planish.reference.packing import pack_nibbles, unpack_nibbles
from planish.reference.quantize.methods import METHODS, Method, quantize_linear
from planish.reference.quantize.methods.rtn import quantize_weight
from planish.reference.quantize.observe import Observed
from planish.reference.quantize.recipe import recipe
from planish.reference.quantized import QuantizedWeight, dequantize
from planish.reference.scheme import int4, int8

F32 = np.float32


def nothing(w, scheme, rule, statistic, name):
    """A method that makes zeros of every weight."""
    codes = pack_nibbles(np.full(w.shape, 8, np.uint8))
    scale = np.ones((len(w), 1), np.float16)
    return QuantizedWeight(codes=codes, scale=scale, scheme=scheme, shape=w.shape)


def test_a_method_is_one_row_of_the_table(monkeypatch):
    with pytest.raises(RecipeError, match="method: unknown; expected one of rtn, found 'nothing'"):
        recipe("W4A16", method="nothing")
    monkeypatch.setitem(METHODS, "nothing", Method(quantize=nothing))
    chosen = recipe("W4A16", method="nothing", group_size=-1)
    layer = quantize_linear(Linear(np.ones((3, 5), F32)), chosen.default, method=chosen.method)
    assert dequantize(layer.weight).tolist() == [[0] * 5] * 3


def test_int8_by_channel_and_by_tensor():
    w = np.array([[127, -64, 1], [12.7, 0, -6.35]], F32)
    found = quantize_weight(w, int8())
    assert found.codes.tolist() == [[127, -64, 1], [127, 0, -64]]  # -63.5 is a tie, to even
    assert found.scale.tolist() == [[1], [F32(12.7) / F32(127)]]
    assert quantize_weight(w, int8("per_tensor")).codes.tolist() == [[127, -64, 1], [13, 0, -6]]


def test_symmetric_int4_has_the_rule_and_no_zero_points():
    w = np.array([[-8, 7, 4, 0]], F32)
    found = quantize_weight(w, int4(-1), "signed")
    assert found.scale.tolist() == [[1]] and found.zero_point is None
    assert unpack_nibbles(found.codes, 4).tolist() == [[0, 15, 12, 8]]
    other = quantize_weight(w, int4(-1), "absmax7")
    assert other.scale.tolist() == [[np.float16(8 / 7)]]


def test_asymmetric_int4_is_minmax_whatever_the_rule():
    found = quantize_weight(np.array([[0, 15, 3, 6]], F32), int4(-1, symmetric=False), "absmax")
    assert (found.scale.tolist(), found.zero_point.tolist()) == ([[1]], [[0]])
    assert unpack_nibbles(found.codes, 4).tolist() == [[0, 15, 3, 6]]


def test_static_activations_take_the_largest_channel_or_are_refused():
    layer, scheme = Linear(np.eye(3, dtype=F32)), int8("per_tensor", "static")
    found = quantize_linear(layer, scheme, observed=Observed(absmax=np.array([1, 254, 3], F32)))
    assert found.activation_scale.tolist() == [2]
    with pytest.raises(QuantizationError, match="q: static activations need a calibration"):
        quantize_linear(layer, scheme, name="q")
