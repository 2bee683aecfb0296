"""Round to nearest with a searched range. Without one it is in test_methods.py."""

import numpy as np
import pytest

from planish.reference.grids import INT4_RULES
from planish.reference.quantize.methods.rtn import quantize_weight, search_weight
from planish.reference.quantize.observe import embed_samples
from planish.reference.quantize.recipe import recipe
from planish.reference.quantized import dequantize
from planish.reference.scheme import int4, int8
from tests.reference.quantize.conftest import by_recipe

F32 = np.float32
W = np.random.default_rng(0).normal(size=(16, 100)).astype(F32)


def error(weight, importance=1):
    return np.float64(importance * np.square(W - dequantize(weight))).sum()


@pytest.mark.parametrize("size", [32, 64, -1])
@pytest.mark.parametrize("rule", INT4_RULES)
def test_the_range_of_each_group_lowers_its_error(rule, size):
    scheme = int4(size, symmetric=rule != "minmax")
    found, plain = search_weight(W, scheme, rule), quantize_weight(W, scheme, rule)
    share = found.scale.astype(F32) / plain.scale.astype(F32)
    assert error(found) < error(plain)
    assert (share <= 1).all() and (share > 0.79).all() and len(np.unique(share.round(2))) > 3


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_int8_keeps_the_shape_of_its_scale(granularity):
    found, plain = (f(W, int8(granularity)) for f in (search_weight, quantize_weight))
    assert found.scale.shape == plain.scale.shape and error(found) <= error(plain)


def test_importance_protects_the_inputs_that_count():
    importance = np.where(np.arange(100) % 10 == 0, 1000, 1).astype(F32)
    plain, weighted = (
        search_weight(W, int4(32)),
        search_weight(W, int4(32), "signed", "w", importance),
    )
    assert error(weighted, importance) < error(plain, importance)


def test_a_grid_that_fits_is_kept():
    w = np.array([[-8, 7, 4, 0] * 8], F32)
    assert search_weight(w, int4(32)).scale.tolist() == [[1]]


def test_it_needs_no_samples_and_uses_them_where_there_are_some(loaded, samples):
    checkpoint, weights = loaded["llama"]
    given = checkpoint.config, weights.blocks[0]
    chosen = recipe("W4A16", group_size=32, search_range=True)
    alone = by_recipe(*given, chosen, runner=None)  # no runner is asked
    hidden = embed_samples(checkpoint.config, weights, samples)
    weighted = by_recipe(*given, chosen, hidden)
    plain = by_recipe(*given, recipe("W4A16", group_size=32))
    codes = [block.mlp.down.weight.codes for block in (alone, weighted, plain)]
    assert not np.array_equal(codes[0], codes[1]) and not np.array_equal(codes[0], codes[2])
