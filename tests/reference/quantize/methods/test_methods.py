"""The table of methods: one row is all that a method needs. And round to nearest, by numbers."""

import numpy as np
import pytest

from planish.reference.errors import QuantizationError, RecipeError
from planish.reference.linear import Linear
from planish.reference.model.weights import block_linears, replace_modules
from planish.reference.packing import unpack_nibbles
from planish.reference.quantize.methods import METHODS, Method
from planish.reference.quantize.methods.rtn import quantize_linear, quantize_weight
from planish.reference.quantize.recipe import recipe
from planish.reference.quantize.runtime import NUMPY
from planish.reference.quantized import dequantize, from_codes
from planish.reference.scheme import int4, int8
from tests.reference.quantize.conftest import by_recipe

F32 = np.float32


def nothing(job, block):
    """A method that makes zeros of every weight."""

    def zeros(part, scheme):
        layer = block_linears(block)[part]
        codes, scale = np.full(layer.weight.shape, 8, np.uint8), np.ones((len(layer.weight), 1))
        return job.with_weight(part, layer, from_codes(codes, scale, None, scheme))

    return replace_modules(block, {part: zeros(part, job.schemes[part]) for part in job.schemes})


def doubled(job, block):
    """A method that rescales: it doubles a weight."""
    return replace_modules(block, {"up": Linear(2 * block.mlp.up.weight)})


def test_a_method_is_one_row_of_the_table(monkeypatch, loaded):
    with pytest.raises(RecipeError, match="method: unknown; expected one of rtn.*'nothing'"):
        recipe("W4A16", method="nothing")
    monkeypatch.setitem(METHODS, "nothing", Method(step=nothing))
    checkpoint, weights = loaded["llama"]
    chosen = recipe("W4A16", method="nothing", group_size=-1)
    found = by_recipe(checkpoint.config, weights.blocks[0], chosen)
    assert not any(dequantize(layer.weight).any() for layer in block_linears(found).values())


def test_methods_follow_each_other_and_the_last_one_rounds(monkeypatch, loaded):
    monkeypatch.setitem(METHODS, "nothing", Method(step=nothing))
    monkeypatch.setitem(METHODS, "doubled", Method(step=doubled, rounds=False))
    checkpoint, weights = loaded["llama"]
    assert recipe("W4A16", method="doubled").methods == ("doubled", "rtn")
    assert recipe("W4A16", method="smooth+doubled+nothing").alpha == 0.5
    found = by_recipe(checkpoint.config, weights.blocks[0], recipe("W8A16", method="doubled"))
    plain = by_recipe(checkpoint.config, weights.blocks[0], recipe("W8A16"))
    assert np.array_equal(found.mlp.up.weight.scale, 2 * plain.mlp.up.weight.scale)
    for chain in ("rtn+doubled", "nothing+rtn", "doubled+doubled", "smooth+smooth", "", "rtn+"):
        with pytest.raises(RecipeError, match="method"):
            recipe("W4A16", method=chain)


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
    found = quantize_linear(layer, scheme, absmax=np.array([1, 254, 3], F32))
    assert found.activation_scale.tolist() == [2]
    with pytest.raises(QuantizationError, match="q: static activations need a calibration"):
        quantize_linear(layer, scheme, name="q")


def test_a_method_that_is_trained_needs_the_fast_engine():
    NUMPY.check_methods(recipe("W4A16", method="awq+gptq"))
    for method in ("teq", "signround"):
        with pytest.raises(RecipeError, match=f"needs --engine fast; found {method}"):
            NUMPY.check_methods(recipe("W4A16", method=method))
