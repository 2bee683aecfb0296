"""fast/xla/linear.py against the definition in reference/linear.py."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from planish.compare.conformance.ops import tolerance
from planish.fast.model.weights import place_linear
from planish.fast.xla import linear as fast_linear
from planish.reference import linear as reference_linear
from planish.reference.grids import INT4_RULES, int8_codes, int8_scale
from planish.reference.linear import Linear
from planish.reference.quantize.methods.rtn import quantize_linear
from planish.reference.quantize.recipe import recipe

pytestmark = pytest.mark.optimized  # numbers and programs of XLA's

ROWS = (1, 2, 7, 16, 17, 65, 130)


def random_linear(outputs: int, inputs: int, seed: int = 0) -> Linear:
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((outputs, inputs)).astype(np.float32)
    return Linear(w, rng.standard_normal(outputs).astype(np.float32))


def rows_of(count: int, inputs: int) -> np.ndarray:
    x = np.random.default_rng(count).standard_normal((count, inputs)).astype(np.float32)
    x[0, 0] = 40  # an outlier
    return x


def run(layer: Linear, x: np.ndarray) -> np.ndarray:
    placed = jax.tree.map(jnp.asarray, place_linear(layer))
    return np.asarray(jax.jit(fast_linear.linear)(jnp.asarray(x)[None], placed))[0]


@pytest.mark.matrix(56)
@pytest.mark.parametrize("name", ["float", "W8A8", "O1", "O2", "naive", "W8A16", "W4A16", "W4A8"])
@pytest.mark.parametrize("rows", ROWS)
def test_every_scheme_is_within_two_ulps_an_operation_of_the_reference(name, rows):
    chosen = recipe(name, group_size=32 if name.startswith("W4") else None)
    layer = random_linear(33, 100)  # 100 leaves a last group of 4
    if chosen.default is not None:
        layer = quantize_linear(layer, chosen.default)
    x = rows_of(rows, 100)
    error = np.abs(run(layer, x) - reference_linear.linear(x, layer))
    assert (error <= tolerance(x, layer)).all()


@pytest.mark.matrix(12)
@pytest.mark.parametrize("rule", INT4_RULES)
@pytest.mark.parametrize("group_size", [32, 64, -1])
@pytest.mark.parametrize("activation", ["per_group", "per_token", "float"])
def test_int4_in_every_rule_group_size_and_activation(rule, group_size, activation):
    chosen = recipe("W4A8", rule=rule, group_size=group_size, activation=activation)
    layer = quantize_linear(
        random_linear(17, 75), chosen.default, rule=chosen.rule
    )  # an odd number of inputs
    x = rows_of(5, 75)
    error = np.abs(run(layer, x) - reference_linear.linear(x, layer))
    assert (error <= tolerance(x, layer)).all()


O3 = recipe("O3").default


def test_static_activations_use_the_stored_scale():
    absmax = np.full(64, 3, np.float32)
    layer = quantize_linear(random_linear(8, 64), O3, absmax=absmax)
    x = rows_of(4, 64)
    np.testing.assert_allclose(run(layer, x), reference_linear.linear(x, layer), rtol=1e-6)
    other = replace(layer, activation_scale=layer.activation_scale * np.float32(2))
    assert np.abs(run(other, x) - run(layer, x)).max() > 0.01


def test_scales_are_divided_and_not_multiplied_by_a_reciprocal():
    absmax = np.logspace(-7, 5, 5001).astype(np.float32)
    found = np.asarray(jax.jit(fast_linear.int8_scale)(jnp.asarray(absmax)))
    np.testing.assert_array_equal(found, int8_scale(absmax))


@pytest.mark.parametrize("largest", [0.37, 47.0, 3.7e-3])
def test_codes_at_ties_are_divided_and_not_multiplied_by_a_reciprocal(largest):
    halves = (np.arange(256) % 254 - 126.5).astype(np.float32)
    x = (halves * np.float32(largest / 127))[None]
    x[0, 0] = largest
    scale = int8_scale(np.abs(x).max(axis=1, keepdims=True))
    found = jax.jit(fast_linear.int8_codes)(jnp.asarray(x), jnp.asarray(scale))
    np.testing.assert_array_equal(np.asarray(found), int8_codes(x, scale))


def test_nan_activations_give_nan_and_not_a_code():
    layer = quantize_linear(random_linear(8, 64), recipe("W8A8").default)
    x = rows_of(2, 64)
    x[1, 3] = np.nan
    y = run(layer, x)
    assert np.isfinite(y[0]).all()
    assert np.isnan(y[1]).all()


def test_per_tensor_maximum_stays_inside_its_sequence():
    layer = quantize_linear(random_linear(8, 64), recipe("O2").default)
    quiet, loud = rows_of(3, 64) * np.float32(0.01), rows_of(3, 64)
    both = jnp.asarray(np.stack([quiet, loud]))
    y = np.asarray(fast_linear.linear(both, jax.tree.map(jnp.asarray, place_linear(layer))))
    np.testing.assert_allclose(y[0], run(layer, quiet), rtol=1e-6)


@pytest.mark.matrix(3)
@pytest.mark.parametrize("rows", [1, 16, 40])
def test_int8_dots_take_the_fast_path(rows):
    """One row is padded to two, because XLA runs a single row 25 times slower."""
    layer = quantize_linear(random_linear(64, 128), recipe("W8A8").default)
    placed = jax.tree.map(jnp.asarray, place_linear(layer))
    x = jnp.asarray(rows_of(rows, 128))[None]
    hlo = jax.jit(fast_linear.linear).lower(x, placed).compile().as_text()
    integer_dots = [line for line in hlo.splitlines() if " dot(" in line and "= s32" in line]
    assert integer_dots
    assert all(
        "s32[1," not in line and ",1]" not in line.split(" dot(")[0] for line in integer_dots
    )
