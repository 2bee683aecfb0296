"""GPTQ by its definition: the codes of small matrices, the factor, fallbacks and settings."""

import numpy as np
import pytest

from planish.reference.errors import QuantizationError
from planish.reference.grids import GROUP_SIZES, INT4_RULES
from planish.reference.model.weights import block_linears
from planish.reference.quantize.methods.gptq import factor_hessian, gptq_codes, invert_upper
from planish.reference.quantize.methods.rtn import quantize_weight
from planish.reference.quantize.observe import embed_samples
from planish.reference.quantize.recipe import recipe
from planish.reference.quantized import dequantize, from_codes
from planish.reference.scheme import int4, int8
from tests.reference.quantize.conftest import by_recipe

F32 = np.float32


def case(k=160, n=24, seed=0):
    """A weight [N, K] and correlated inputs [512, K]."""
    rng = np.random.default_rng(seed)
    mix = np.eye(k) + rng.normal(size=(k, k)) / np.sqrt(k)
    x = rng.normal(size=(512, k)) @ mix
    return rng.normal(size=(n, k)).astype(F32), x.astype(F32)


def hessian_of(x):
    return (x.T @ x * (2 / len(x))).astype(F32)


def output_error(x, w, weight):
    return float(((x @ (w - dequantize(weight)).T) ** 2).mean())


def by_gptq(w, h, scheme, rule="signed", **settings):
    return from_codes(*gptq_codes(w, factor_hessian(h, **settings), scheme, rule), scheme)


def test_two_columns_by_hand():
    """W = [2.4, 1] at scale 1, H = [[2, 1], [1, 2]] undamped: H^-1 = [[2, -1], [-1, 2]] / 3."""
    h = np.array([[2, 1], [1, 2]], F32)
    factor = factor_hessian(h, damping=1e-12)
    u = np.array([[np.sqrt(2 / 3), -np.sqrt(1 / 6)], [0, np.sqrt(1 / 2)]])
    assert factor.upper == pytest.approx(u, abs=1e-6)
    # the error 0.4 of the first column moves the second by 0.4 * 1/2: 1.3 + 0.2 = 1.5 -> 2
    w = np.array([[2.4, 1.31, 127]], F32)
    wide = np.eye(3, dtype=F32)
    wide[:2, :2] = h
    codes, scale, zero = gptq_codes(w, factor_hessian(wide, 1e-12), int8())
    assert scale.tolist() == [[1]] and zero is None
    assert codes.tolist() == [[2, 2, 127]]
    assert quantize_weight(w, int8()).codes.tolist() == [[2, 1, 127]]


def test_the_factor_is_the_upper_cholesky_factor_of_the_damped_inverse():
    _, x = case()
    h = hessian_of(x).astype(np.float64)
    damped = h + 0.01 * np.diagonal(h).mean() * np.eye(len(h))
    u = factor_hessian(hessian_of(x)).upper
    assert (u == np.triu(u)).all()
    assert u == pytest.approx(np.linalg.cholesky(np.linalg.inv(damped)).T, rel=1e-5, abs=1e-7)
    assert invert_upper(np.triu(h)) @ np.triu(h) == pytest.approx(np.eye(len(h)), abs=1e-9)


def test_uncorrelated_inputs_leave_rounding_to_nearest():
    w, _ = case()
    for scheme in (int4(32), int4(128, symmetric=False), int8(), int4(-1)):
        found = by_gptq(w, np.eye(160, dtype=F32), scheme)
        assert np.array_equal(found.codes, quantize_weight(w, scheme).codes)


@pytest.mark.matrix(4)
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("size", GROUP_SIZES)
@pytest.mark.parametrize("rule", INT4_RULES)
def test_the_output_error_is_below_that_of_rounding_to_nearest(rule, size, act_order):
    w, x = case()
    scheme = int4(size, symmetric=rule != "minmax")
    found = by_gptq(w, hessian_of(x), scheme, rule, act_order=act_order)
    nearest = quantize_weight(w, scheme, rule)
    assert found.scale.shape == nearest.scale.shape
    assert output_error(x, w, found) < 0.8 * output_error(x, w, nearest)


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_int8_has_the_scale_of_rounding_to_nearest_and_less_error(granularity):
    w, x = case()
    scheme = int8(granularity)
    found, nearest = by_gptq(w, hessian_of(x), scheme), quantize_weight(w, scheme)
    assert np.array_equal(found.scale, nearest.scale)
    assert output_error(x, w, found) < 0.8 * output_error(x, w, nearest)


def test_groups_take_their_parameters_from_the_updated_columns_unless_ordered():
    w, x = case()
    scheme, h = int4(32, symmetric=False), hessian_of(x)
    nearest = quantize_weight(w, scheme)
    moving, fixed = by_gptq(w, h, scheme), by_gptq(w, h, scheme, act_order=True)
    assert np.array_equal(moving.scale[:, 0], nearest.scale[:, 0])
    assert not np.array_equal(moving.scale, nearest.scale)
    assert np.array_equal(fixed.scale, nearest.scale)
    assert np.array_equal(fixed.zero_point, nearest.zero_point)


def test_inputs_that_are_always_zero_get_the_code_of_zero():
    w, x = case()
    x[:, [3, 40]] = 0
    w[:, 3] = 100  # it would spoil its group's scale
    found = dequantize(by_gptq(w, hessian_of(x), int4(32)))
    assert not found[:, [3, 40]].any() and np.abs(found[:, :32]).max() < 10


def test_a_singular_hessian_raises_the_damping():
    x = np.ones((4, 64), F32)
    factor = factor_hessian(hessian_of(x), damping=1e-18)
    assert factor.damping > 1e-17
    assert factor_hessian(hessian_of(x)).damping == 0.01  # damped enough as it is


def test_a_hessian_that_overflows_is_an_error_that_names_the_linear():
    h = np.eye(3, dtype=F32)
    h[1, 1] = np.inf
    with pytest.raises(QuantizationError, match=r"^layers\.3\.o: the Hessian .* overflows"):
        factor_hessian(h, name="layers.3.o")


@pytest.mark.parametrize("true_sequential", [False, True])
def test_a_block_is_quantized_by_what_its_quantized_linears_leave(loaded, samples, true_sequential):
    checkpoint, weights = loaded["llama"]
    config, block = checkpoint.config, weights.blocks[0]
    hidden = embed_samples(config, weights, samples)
    chosen = recipe(
        "W4A16", group_size=32, method="gptq", true_sequential=true_sequential, damping=0.1
    )
    found, notes = by_recipe(config, block, chosen, hidden), []
    assert all(layer.scheme == chosen.default for layer in block_linears(found).values())
    again = by_recipe(config, block, chosen, hidden, note=notes.append)
    assert np.array_equal(again.mlp.down.weight.codes, found.mlp.down.weight.codes)
    assert not notes


def test_true_sequential_feeds_down_by_the_quantized_ones(loaded, samples):
    checkpoint, weights = loaded["llama"]
    hidden = embed_samples(checkpoint.config, weights, samples)
    given = checkpoint.config, weights.blocks[0]
    one, two = (
        by_recipe(*given, recipe("W4A16", method="gptq", true_sequential=flag), hidden)
        for flag in (False, True)
    )
    assert np.array_equal(one.q.weight.codes, two.q.weight.codes)
    assert not np.array_equal(one.mlp.down.weight.codes, two.mlp.down.weight.codes)


def test_without_a_calibration_it_is_an_error(loaded):
    checkpoint, weights = loaded["llama"]
    with pytest.raises(QuantizationError, match="gptq needs a calibration"):
        by_recipe(checkpoint.config, weights.blocks[0], recipe("W4A16", method="gptq"))


def test_static_activations_keep_their_scale(loaded, samples):
    checkpoint, weights = loaded["llama"]
    hidden = embed_samples(checkpoint.config, weights, samples)
    given = checkpoint.config, weights.blocks[0]
    found = by_recipe(*given, recipe("O3", method="gptq"), hidden)
    nearest = by_recipe(*given, recipe("O3"), hidden)
    assert found.mlp.down.activation_scale == nearest.mlp.down.activation_scale
