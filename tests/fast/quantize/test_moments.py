"""Second moments by half of their blocks: the whole matrix, symmetric, summed over batches."""

import jax.numpy as jnp
import numpy as np
import pytest

from planish.fast.quantize import moments


@pytest.mark.matrix(4)
@pytest.mark.parametrize("inputs", [5, 8, 16, 21])
def test_the_upper_blocks_make_the_whole_matrix(monkeypatch, inputs):
    monkeypatch.setattr(moments, "COLUMNS", 8)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((tokens, inputs)).astype(np.float32) for tokens in (30, 7))
    first, second = (moments.upper_moments(jnp.asarray(x)) for x in (a, b))
    assert [block.shape for block in first] == [
        (min(8, inputs - start), inputs - start) for start in range(0, inputs, 8)
    ]
    found = moments.complete(moments.add_upper(first, second))
    assert found.dtype == np.float32 and np.array_equal(found, found.T)
    assert found == pytest.approx(a.T @ a + b.T @ b, rel=1e-5, abs=1e-5)


def test_literal_moments_of_two_tokens():
    x = jnp.array([[1.0, 2.0, 0.0], [3.0, -1.0, 2.0]])
    assert moments.complete(moments.upper_moments(x)).tolist() == [
        [10, -1, 6],
        [-1, 5, -2],
        [6, -2, 4],
    ]
