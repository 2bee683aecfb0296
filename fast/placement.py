"""Where the engine computes: on the CPU, compiled, whatever else jax could find or was told.

The command claims the whole of jax. In a program that uses jax for other things, on a GPU say,
the engine's functions ask for the CPU only while they run.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

from planish.reference.errors import PlanishError

P = ParamSpec("P")
R = TypeVar("R")

# what the environment may have set for other programs, and the engine's results or life depend on
SETTINGS = {
    "jax_platforms": "cpu",
    "jax_platform_name": "cpu",
    "jax_default_device": None,
    "jax_default_matmul_precision": None,
    "jax_disable_jit": False,
    "jax_enable_x64": False,
    "jax_no_tracing": False,
    "jax_raise_persistent_cache_errors": False,
    "jax_transfer_guard": "allow",
}


def claim_jax() -> None:
    """Have this process's jax, before its first use, start the CPU alone and compile for it."""
    for name, value in SETTINGS.items():
        with contextlib.suppress(AttributeError):  # jax retires settings now and then
            jax.config.update(name, value)


def cpu() -> jax.Device:
    """jax's CPU; raises PlanishError where the environment forbids jax to use it."""
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
    """A function (no generator) whose arrays are made and programs compiled on the CPU."""

    @functools.wraps(function)
    def run(*arguments: P.args, **named: P.kwargs) -> R:
        with jax.default_device(cpu()), jax.disable_jit(False):
            return function(*arguments, **named)

    return run
