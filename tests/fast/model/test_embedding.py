"""Rows of an embedding's codes by XLA, as the reference computes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import planish.fast.model.weights  # noqa: F401 (makes pytrees of the reference's types)
from planish.fast.model.embedding import embedding_rows
from planish.reference.grids import num_groups
from planish.reference.model import embedding as reference
from planish.reference.packing import pack_nibbles
from planish.reference.quantized import QuantizedWeight
from planish.reference.scheme import Scheme, int4

SCHEMES = [
    Scheme(bits=8, granularity="per_group", group_size=32, scale_dtype="float16"),
    Scheme(bits=8, granularity="per_group", group_size=64, symmetric=False, offset=True),
    Scheme(bits=4, granularity="per_group", group_size=32, symmetric=False, offset=True),
    int4(32),
    int4(64, symmetric=False),
    int4(-1, scale_dtype="float32"),
]
TOKENS = np.array([[3, 0, 18], [7, 7, 1]])


def make(scheme: Scheme) -> QuantizedWeight:
    """An embedding [19, 75]: its last group is partial, and an INT4 row ends in half a byte."""
    rng = np.random.default_rng(0)
    groups = 19, num_groups(75, scheme.group_size)
    codes = rng.integers(0, 2**scheme.bits, (19, 75))
    signed = scheme.bits == 8 and not scheme.offset
    stored = (codes - 128).astype(np.int8) if signed else codes.astype(np.uint8)
    zero = rng.integers(0, 16, groups).astype(np.uint8)
    has_zero = scheme.bits == 4 and not (scheme.symmetric or scheme.offset)
    return QuantizedWeight(
        codes=pack_nibbles(stored) if scheme.bits == 4 else stored,
        scale=rng.standard_normal(groups).astype(scheme.scale_dtype),
        zero_point=zero if has_zero else None,
        offset=rng.standard_normal(groups).astype(np.float32) if scheme.offset else None,
        scheme=scheme,
        shape=(19, 75),
    )


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_rows_are_the_references_but_for_a_fused_sum(scheme):
    embed = make(scheme)
    found = np.asarray(jax.jit(embedding_rows)(embed, jnp.asarray(TOKENS)))
    expected = np.stack([reference.embedding_rows(embed, row) for row in TOKENS])
    assert found.shape == (2, 3, 75)
    if scheme.offset:
        np.testing.assert_allclose(found, expected, rtol=0, atol=2**-23 * 1024)
    else:
        np.testing.assert_array_equal(found, expected)
