"""sum over tokens of x xt, GPTQ's Hessian, with the work of a symmetric matrix.

Only the blocks on and above the diagonal are multiplied, and they are summed on the device:

    x [T, K]  ->  for each block of B columns from i on:  x[:, i : i + B]t x[:, i :]

of K^2 T products that leaves about (1 + B / K) / 2. The matrix is completed at the end, on the
host. XLA has no symmetric product.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np

COLUMNS = 1024  # B: smaller ones save more products, but each is less efficient

Upper = tuple[Any, ...]  # blocks [B, K - i]


def upper_moments(x: jax.Array) -> Upper:
    """The blocks of x xt on and above the diagonal, summed over tokens; x [T, K]."""
    starts = range(0, x.shape[1], COLUMNS)
    return tuple(x[:, start : start + COLUMNS].T @ x[:, start:] for start in starts)


@partial(jax.jit, donate_argnums=0)
def add_upper(total: Upper, found: Upper) -> Upper:
    """The sum of two results, in the first one's memory."""
    return jax.tree.map(lambda a, b: a + b, total, found)


def complete(upper: Upper) -> np.ndarray:
    """The whole matrix [K, K]."""
    size = upper[0].shape[1]
    whole = np.empty((size, size), np.float32)
    for start, block in zip(range(0, size, COLUMNS), upper, strict=True):
        rows = slice(start, start + COLUMNS)
        whole[rows, start:] = block
        whole[start:, rows] = whole[rows, start:].T
    return whole
