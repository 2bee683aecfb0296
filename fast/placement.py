"""Where the engine's arrays go and its programs run: on the CPU, even if jax finds a GPU.

A program may use jax for other things, on a GPU for example. So the engine's functions ask for the
CPU only while they run, and nothing in fast/ changes jax's settings. Every array from the host goes
through `put`, or `give` if only one call reads it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import jax
import numpy as np

from planish.reference.errors import PlanishError

P = ParamSpec("P")
R = TypeVar("R")


def cpu() -> jax.Device:
    """jax's CPU device; raises PlanishError if the environment keeps jax from using it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except (RuntimeError, AssertionError) as problem:  # the latter for a GPU without its plugin
        names = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")
        found = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
        raise PlanishError(
            f"jax does not start its CPU ({problem})",
            expected="JAX_PLATFORMS without a value or with cpu in it",
            found=", ".join(found) or "none of these in the environment",
        ) from None


def on_cpu(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a function (no generator) so that it makes arrays and compiles on the CPU."""

    @functools.wraps(function)
    def run(*arguments: P.args, **named: P.kwargs) -> R:
        with jax.default_device(cpu()), jax.disable_jit(False):
            return function(*arguments, **named)

    return run


def put(tree: Any) -> Any:
    """NumPy arrays on the device. One that is aligned to 64 bytes, such as a tensor of a mapped
    file, is aliased and not copied, so it must not be written to afterwards."""
    return jax.device_put(tree, may_alias=True)


def give(array: np.ndarray) -> jax.Array:
    """A NumPy array as an argument of one call: the same, for the program sees a jax.Array.

    The call copies it in 0.01 ms, where `put` takes 0.15, and decoding a few tokens has six."""
    return cast(jax.Array, array)


def zeros(forms: Any) -> Any:
    """Zeros of a tree's shapes and types on the device, each in memory of its own.

    Nothing is compiled, as it is for each shape that jnp.zeros is called with."""
    tree = jax.tree.map(lambda form: np.zeros(form.shape, form.dtype), forms)
    return jax.device_put(tree, may_alias=False)
