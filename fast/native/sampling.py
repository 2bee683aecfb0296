"""Sampling by the native kernels, in float64 as the reference does it.

float64 arrays cannot pass through 32-bit JAX, so they pass as pairs of int32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from planish.reference.text.sampling import Sampling


def sample(logits: jax.Array, sampling: jax.Array, uniform: jax.Array, isa: str = "") -> jax.Array:
    """The next token of each row of logits [B, V] -> int32 [B]; -1 if they are not numbers.

    sampling int32 [B, 5]: pack_settings of each row; uniform int32 [B, 2]: as_int32 of float64 [B].
    """
    shape = jax.ShapeDtypeStruct(logits.shape[:1], jnp.int32)
    return jax.ffi.ffi_call("planish_sample", shape)(logits, sampling, uniform, isa=isa)


def pack_settings(sampling: Sampling) -> np.ndarray:
    """Temperature, top_p and top_k as kernels/ffi/sample.cc reads them, int32 [5]."""
    floats = as_int32(np.array([sampling.temperature, sampling.top_p]))
    return np.append(floats.ravel(), np.int32(sampling.top_k))


def as_int32(x: np.ndarray) -> np.ndarray:
    """float64 [N] -> int32 [N, 2]: float64 arrays cannot pass through 32-bit JAX."""
    return np.ascontiguousarray(x, np.float64).view(np.int32).reshape(*x.shape, 2)


def can_sample(sampling: Sampling) -> bool:
    """Whether the kernel knows all settings: it draws as the reference does from logits as they
    are, by temperature, top_k and top_p."""
    return not sampling.adjusts and (sampling.min_p == 0 or sampling.temperature == 0)
