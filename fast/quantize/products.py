"""Matrix products with gradients, whose factors may be bfloat16, as PyTorch's autocast has them.

XLA multiplies bfloat16 matrices by AMX tiles where the processor has them, two to four times as
fast as float32 ones: in the layouts x wt and g w, not in gt x, which the gradient of w asks for. So
gt is laid out anew, by a transposition over blocks of rows that XLA does not fold into the product.
Sums are float32 in any case.

R rows, K inputs, N outputs.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from planish.fast.native.instruction_sets import cpu_features

BLOCKS = (64, 32, 16, 8, 4, 2)  # rows that are transposed as one; 64 is the fastest
Factors = tuple[jax.Array, jax.Array]


def fast_dtype() -> str:
    """The type of factors that this processor multiplies fastest: bfloat16 with AMX tiles."""
    return "bfloat16" if "amx_bf16" in cpu_features() else "float32"


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def multiply(x: jax.Array, w: jax.Array, dtype: str) -> jax.Array:
    """x wt for x [..., R, K] and w [..., N, K], both rounded to dtype -> float32 [..., R, N]."""
    return save_factors(x, w, dtype)[0]


def save_factors(x: jax.Array, w: jax.Array, dtype: str) -> tuple[jax.Array, Factors]:
    x, w = x.astype(dtype), w.astype(dtype)
    return contract(x, w, (-1, -1)), (x, w)


def pull_back(dtype: str, factors: Factors, gradient: jax.Array) -> Factors:
    x, w = factors
    g = gradient.astype(dtype)
    if dtype == "float32":
        return contract(g, w, (-1, -2)), contract(g, x, (-2, -2))
    return contract(g, w, (-1, -2)), contract(transpose(g), x, (-1, -2))


multiply.defvjp(save_factors, pull_back)


def contract(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """The sum of a * b over one axis of each, batched over the axes before the last two."""
    batch = tuple(range(a.ndim - 2))
    left, right = (axis % a.ndim for axis in axes)
    dimensions = (((left,), (right,)), (batch, batch))
    return lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def transpose(g: jax.Array) -> jax.Array:
    """g [..., R, N] -> [..., N, R], written to memory."""
    rows = g.shape[-2]
    block = next((size for size in BLOCKS if rows % size == 0), 1)
    split = g.reshape(*g.shape[:-2], rows // block, block, g.shape[-1])
    return jnp.moveaxis(split, -1, -3).reshape(*g.shape[:-2], g.shape[-1], rows)
