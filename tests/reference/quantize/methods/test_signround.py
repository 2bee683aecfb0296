"""What SignRound's learned parameters mean, by numbers; without any it is round to nearest."""

import numpy as np
import pytest

from planish.reference.errors import QuantizationError, RecipeError
from planish.reference.packing import unpack_nibbles
from planish.reference.quantize.methods.rtn import quantize_weight
from planish.reference.quantize.methods.signround import Rounding, signround_weight
from planish.reference.quantize.recipe import recipe
from planish.reference.scheme import int4, int8
from tests.reference.quantize.conftest import by_recipe

F32 = np.float32
GRIDS = [
    *((int4(32), rule) for rule in ("signed", "absmax", "absmax7")),
    (int4(64, symmetric=False), "minmax"),
    (int4(-1, scale_dtype="float32"), "signed"),
    (int8(), "signed"),
    (int8("per_tensor"), "signed"),
]


def unlearned(w, scheme, **changes):
    """V = 0 and alpha = 1, with changes."""
    groups = quantize_weight(w, scheme).scale.shape
    ones = np.ones(groups, F32)
    given = {"v": np.zeros(w.shape, F32), "alpha_min": ones, "alpha_max": ones}
    return Rounding(**{**given, **{key: np.asarray(x, F32) for key, x in changes.items()}})


@pytest.mark.parametrize(("scheme", "rule"), GRIDS, ids=str)
def test_unlearned_parameters_are_rounding_to_nearest(scheme, rule):
    w = np.random.default_rng(0).normal(size=(6, 80)).astype(F32)  # a partial last group
    w[2, 32:64], w[3] = 0, 0
    found = signround_weight(w, unlearned(w, scheme), scheme, rule)
    right = quantize_weight(w, scheme, rule)
    assert np.array_equal(found.codes, right.codes) and np.array_equal(found.scale, right.scale)
    assert (found.zero_point is None) == (right.zero_point is None)
    if right.zero_point is not None:
        assert np.array_equal(found.zero_point, right.zero_point)


def test_v_moves_codes_and_the_grid_ends_them():
    w = np.array([[-8, 7, 4, 0]], F32)
    found = signround_weight(w, unlearned(w, int4(-1), v=[[-0.5, 0.9, 0.4, 0.5]]), int4(-1))
    assert found.scale.tolist() == [[1]]
    assert unpack_nibbles(found.codes, 4).tolist() == [[0, 15, 12, 8]]  # -8.5 -> -8, ties to even
    found = signround_weight(w, unlearned(w, int4(-1), v=[[0.6, -0.6, -0.6, 0.6]]), int4(-1))
    assert unpack_nibbles(found.codes, 4).tolist() == [[1, 14, 11, 9]]
    w = np.array([[127, -64.4, 1]], F32)
    found = signround_weight(w, unlearned(w, int8(), v=[[3, -0.2, -0.6]]), int8())
    assert found.codes.tolist() == [[127, -65, 0]]


def test_alpha_shrinks_each_side_of_an_asymmetric_range():
    w, scheme = np.array([[-6, 9, 3, 0]], F32), int4(-1, symmetric=False)
    given = unlearned(w, scheme, alpha_min=[[0.5]], alpha_max=[[4 / 3]])
    found = signround_weight(w, given, scheme)
    assert (found.scale.tolist(), found.zero_point.tolist()) == ([[1]], [[3]])
    assert unpack_nibbles(found.codes, 4).tolist() == [[0, 12, 6, 3]]  # -6 is cut to -3


def test_a_symmetric_rule_takes_the_larger_shrunken_side():
    w = np.array([[-8, 7, 4, 0]], F32)
    found = signround_weight(w, unlearned(w, int4(-1), alpha_min=[[0.5]]), int4(-1))
    assert found.scale.tolist() == [[np.float16(-7 / 8)]]  # 7 is now the extreme
    both = unlearned(w, int4(-1), alpha_min=[[0.5]], alpha_max=[[0.25]])
    found = signround_weight(w, both, int4(-1), "absmax7")
    assert found.scale.tolist() == [[np.float16(4 / 7)]]
    w = np.array([[127, -254]], F32)
    found = signround_weight(w, unlearned(w, int8(), alpha_min=[[0.25]]), int8())
    assert (found.scale.tolist(), found.codes.tolist()) == ([[1]], [[127, -127]])


def test_a_tensor_that_is_not_finite_is_named():
    w = np.full((1, 4), np.nan, F32)
    given = Rounding(v=np.zeros((1, 4), F32), alpha_min=np.ones((1, 1)), alpha_max=np.ones((1, 1)))
    with pytest.raises(QuantizationError, match=r"^mlp\.up: cannot be quantized"):
        signround_weight(w, given, int4(-1), name="mlp.up")


@pytest.mark.parametrize("method", ["signround", "teq"])
def test_numpy_does_not_train(loaded, method):
    checkpoint, weights = loaded["llama"]
    with pytest.raises(RecipeError, match=f"--engine fast; found {method}"):
        by_recipe(checkpoint.config, weights.blocks[0], recipe("W4A16", method=method))


def test_the_settings_that_training_reads():
    chosen = recipe("W4A16", method="teq+signround", seed=3, preset="light", iterations=7)
    assert chosen.sequential and chosen.methods == ("teq", "signround")
    with pytest.raises(RecipeError, match="preset: has no effect"):
        recipe("W4A16", method="teq", preset="light")
