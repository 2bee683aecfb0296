"""Products of training: their values and gradients, in both types, batched or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from planish.fast.quantize import products
from planish.fast.quantize.products import fast_dtype, multiply, transpose

F32 = np.float32


@pytest.mark.matrix(16)
@pytest.mark.parametrize("rows", [1, 6, 24, 128])
@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_products_and_gradients_are_numpys(dtype, error, batch, rows):
    rng = np.random.default_rng(rows)
    x, w, g = (
        rng.normal(size=(*batch, *shape)).astype(F32)
        for shape in ((rows, 40), (20, 40), (rows, 20))
    )
    y, pull_back = jax.vjp(lambda x, w: multiply(x, w, dtype), x, w)
    dx, dw = pull_back(jnp.asarray(g))
    wt, gt = np.swapaxes(w, -1, -2), np.swapaxes(g, -1, -2)
    for found, right in ((y, x @ wt), (dx, g @ w), (dw, gt @ x)):
        assert found.dtype == F32
        assert np.linalg.norm(found - right) < error * np.linalg.norm(right)


@pytest.mark.parametrize("shape", [(64, 5), (2, 6, 3), (1, 7)])
def test_transpose_is_numpys(shape):
    g = np.arange(np.prod(shape), dtype=F32).reshape(shape)
    assert np.array_equal(transpose(jnp.asarray(g)), np.swapaxes(g, -1, -2))


def test_bfloat16_is_for_processors_with_tiles(monkeypatch):
    for features, dtype in (({"avx512f", "amx_bf16"}, "bfloat16"), ({"avx512f"}, "float32")):
        monkeypatch.setattr(products, "cpu_features", lambda features=features: features)
        assert fast_dtype() == dtype
