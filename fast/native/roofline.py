"""Peak rates of the machine, measured with the kernels' threads, for compare/bench/roofline.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def probe(x: jax.Array, rounds: jax.Array, isa: str = "") -> jax.Array:
    """Read x uint8 [N] once with every thread, then multiply bytes in registers, 64 * rounds[0]
    times 2048 operations in all, and 64 * rounds[1] times without matrix tiles.

    rounds int32 [2] -> int32 [1].
    """
    shape = jax.ShapeDtypeStruct((1,), jnp.int32)
    return jax.ffi.ffi_call("planish_roofline", shape, has_side_effect=True)(x, rounds, isa=isa)
