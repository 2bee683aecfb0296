"""Linears with float weights by the kernels: as XLA's, with the same bits in every batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from planish.fast.model.backend import Normed
from planish.fast.native.dense import dense
from planish.fast.xla import linear as xla
from planish.reference.linear import Linear
from planish.reference.model.layers import Norm

RNG = np.random.default_rng(0)


def floats(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.matrix(20)
@pytest.mark.again
@pytest.mark.parametrize("rows", [1, 3, 4, 9, 65])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (5, 15), (50, 200), (131, 64)])
def test_a_float_linear_is_what_xla_computes(kernels, rows, outputs, inputs):
    layer = Linear(floats(outputs, inputs), floats(outputs))
    x, residual = floats(1, rows, inputs), floats(1, rows, outputs)
    expected = np.asarray(xla.linear(jnp.asarray(x), layer, jnp.asarray(residual)))
    for isa in kernels:
        found = np.asarray(dense(jnp.asarray(x), layer, residual=jnp.asarray(residual), isa=isa))
        assert np.abs(found - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())


@pytest.mark.matrix(2)
@pytest.mark.again
@pytest.mark.parametrize("kind", ["rms_norm", "layer_norm"])
def test_its_norm_is_the_models(kernels, kind):
    bias = floats(70) if kind == "layer_norm" else None
    norm = Norm(weight=floats(70), bias=bias, kind=kind, eps=1e-5)
    layer, x = Linear(floats(20, 70)), floats(2, 3, 70)
    (expected,) = xla.project(Normed(jnp.asarray(x), norm), (layer,))
    for isa in kernels:
        found = np.asarray(dense(jnp.asarray(x), layer, norm, isa=isa))
        np.testing.assert_allclose(found, np.asarray(expected), atol=2e-5)


@pytest.mark.again
def test_a_row_has_the_same_bits_in_every_batch(kernels):
    layer, x = Linear(floats(50, 200)), floats(1, 23, 200)
    run = jax.jit(lambda x, isa: dense(x, layer, isa=isa), static_argnums=1)
    for isa in kernels:
        batched = np.asarray(run(jnp.asarray(x), isa))[0]
        alone = [np.asarray(run(jnp.asarray(x[:, i : i + 1]), isa))[0, 0] for i in range(23)]
        np.testing.assert_array_equal(batched, np.stack(alone))


def test_shapes_that_do_not_fit_are_refused(kernels):
    with pytest.raises(Exception, match="weight is"):
        jax.block_until_ready(dense(jnp.ones((1, 2, 8)), Linear(floats(4, 9)), isa=kernels[0]))
