"""Strictness that catches silent promotions: no float64, no int32, no rank comes from nowhere."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
