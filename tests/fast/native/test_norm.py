"""Norms that no linear reads: the reference's, with the same bits in every batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from planish.fast.native.norm import normalize
from planish.reference.model import layers as reference
from planish.reference.model.layers import Norm

RNG = np.random.default_rng(0)


def floats(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.matrix(8)
@pytest.mark.parametrize("kind", ["rms_norm", "layer_norm"])
@pytest.mark.parametrize("shape", [(1, 1, 16), (2, 3, 70), (1, 65, 7), (1, 5, 3, 20)])
def test_a_norm_is_the_references(kernels, kind, shape):
    x, width = floats(*shape), shape[-1]
    bias = floats(width) if kind == "layer_norm" else None
    for norm in (
        Norm(weight=floats(width), bias=bias, kind=kind, eps=1e-5),
        Norm(weight=None, bias=None, kind=kind, eps=1e-6),
        Norm(weight=floats(*shape[2:]), bias=None, kind=kind, eps=1e-5),  # of each head
    ):
        expected = reference.normalize(x, norm)
        for isa in kernels:
            found = np.asarray(normalize(jnp.asarray(x), norm, isa))
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_no_norm_changes_nothing():
    x = jnp.ones((1, 2, 3))
    assert normalize(x, None) is x


def test_a_row_has_the_same_bits_in_every_batch(kernels):
    norm, x = Norm(weight=floats(200), bias=None, kind="rms_norm", eps=1e-5), floats(1, 530, 200)
    run = jax.jit(lambda x, isa: normalize(x, norm, isa), static_argnums=1)
    for isa in kernels:
        batched = np.asarray(run(jnp.asarray(x), isa))[0]
        alone = [np.asarray(run(jnp.asarray(x[:, i : i + 1]), isa))[0, 0] for i in (0, 7, 529)]
        np.testing.assert_array_equal(batched[[0, 7, 529]], np.stack(alone))


def test_weights_that_do_not_fit_are_refused(kernels):
    norm = Norm(weight=np.ones(9, np.float32), bias=None, kind="rms_norm", eps=1e-5)
    with pytest.raises(Exception, match="norm weight"):
        jax.block_until_ready(normalize(jnp.ones((1, 2, 8)), norm, kernels[0]))
