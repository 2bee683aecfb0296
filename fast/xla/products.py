"""Which library multiplies INT8 in XLA's programs here, read from a program that XLA has compiled.

On a CPU, XLA hands some products to a library: the compiled program then has a custom fusion
(YNNPACK's is `__ynn_fusion` in jaxlib 0.10 to 0.12) or a custom call (oneDNN's). Otherwise XLA
writes the loops itself, without matrix tiles. Whether a library uses AMX cannot be read there: it
decides when it runs, and must ask the system (https://docs.kernel.org/arch/x86/xstate.html). So
`may_use_tiles` reads what the system has answered.
"""

from __future__ import annotations

import ctypes
import platform
import re
import sys

import jax
import jax.numpy as jnp

from planish.fast.xla.linear import integer_product

LIBRARIES = {"__ynn_fusion": "YNNPACK", "__xnn_fusion": "XNNPACK", "__onednn": "oneDNN"}
FOUND = re.compile(r'"kind":"(__\w+)"|custom_call_target="([^"]+)"')
ARCH_PRCTL, GET_PERMISSION, TILES = 158, 0x1022, 18


def compile_int8_product(rows: int = 64, inputs: int = 64, outputs: int = 64) -> str:
    """The text of XLA's program for the product of many rows, after running it once."""
    x, w = jnp.ones((rows, inputs), jnp.int8), jnp.ones((outputs, inputs), jnp.int8)
    program = jax.jit(integer_product).lower(x, w).compile()
    jax.block_until_ready(program(x, w))
    return program.as_text() or ""


def find_library(program: str) -> str | None:
    """YNNPACK for `"kind":"__ynn_fusion"`, an unknown one by XLA's name; None for XLA's loops."""
    found = FOUND.search(program)
    if found is None:
        return None
    kind = found[1] or found[2]
    return next((name for start, name in LIBRARIES.items() if kind.startswith(start)), kind)


def may_use_tiles() -> bool:
    """Whether the system lets this process use AMX's tiles; it was asked by then, or does not."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    features = ctypes.c_ulong(0)
    numbers = (ctypes.c_long(ARCH_PRCTL), ctypes.c_long(GET_PERMISSION))
    refused = ctypes.CDLL(None).syscall(*numbers, ctypes.byref(features))
    return not refused and bool(features.value >> TILES & 1)
