"""What the machine gives at most, measured in the same run as what is compared with it.

    memory    bytes read per second, 512 MiB at a time, by the threads that run the kernels
    int8      operations per second of byte products in registers (VNNI, dot product)
    float32   operations per second of XLA's matrix product

Without native kernels the first two are XLA's sum of an array and XLA's int8 product: what the
portable form could reach, and less than what the machine can do. Each limit is sampled once per
round between the engines, and the median counts, as theirs does: a shared machine has good and
bad minutes.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
from jax import lax

from planish.fast.native import roofline

READ_BYTES = 2**29  # larger than any cache
ROUNDS = 200_000  # of 2048 operations, for each of 64 units
PER_SAMPLE = 3  # measured so often for one sample; the quickest counts


class Limits:
    """Samples of the limits; `values()` are their medians."""

    def __init__(self, kernels: bool):
        array = jax.device_put(jnp.ones((64, READ_BYTES // 64), jnp.uint8))
        self.measures: dict[str, Callable[[], float]] = {
            "memory_read_bytes_per_second": partial(native_read if kernels else xla_read, array),
            "int8_operations_per_second": native_products
            if kernels
            else partial(product, jnp.int8, jnp.int32),
            "float32_operations_per_second": partial(product, jnp.float32, jnp.float32),
        }
        self.samples: dict[str, list[float]] = {name: [] for name in self.measures}

    def sample(self) -> None:
        """One more sample of each."""
        for name, measure in self.measures.items():
            self.samples[name].append(measure())

    def values(self) -> dict[str, float]:
        """The medians so far."""
        return {name: statistics.median(found) for name, found in self.samples.items()}


def native_read(array: jax.Array) -> float:
    """Bytes per second that the kernels' threads read."""
    done = jax.jit(roofline.probe), array.reshape(-1), jnp.zeros(1, jnp.int32)
    return array.nbytes / fastest(*done)


def native_products() -> float:
    """Operations per second of byte products in registers."""
    nothing, rounds = jnp.zeros(0, jnp.uint8), jnp.full(1, ROUNDS, jnp.int32)
    return 64 * ROUNDS * 2048 / fastest(jax.jit(roofline.probe), nothing, rounds)


def xla_read(array: jax.Array) -> float:
    """Bytes per second of a sum by XLA."""
    words = jax.lax.bitcast_convert_type(array.reshape(64, -1, 4), jnp.float32)
    return array.nbytes / fastest(jax.jit(lambda x: x.sum(axis=1)), words)


def product(
    kind: Any, total: Any, rows: int = 512, inputs: int = 2048, outputs: int = 5632
) -> float:
    """Operations per second of XLA's matrix product, [512, 2048] x [5632, 2048]."""
    x, w = jnp.ones((rows, inputs), kind), jnp.ones((outputs, inputs), kind)
    contract = (((1,), (1,)), ((), ()))
    dot = jax.jit(lambda x, w: lax.dot_general(x, w, contract, preferred_element_type=total))
    return 2 * rows * inputs * outputs / fastest(dot, x, w)


def fastest(function: Callable[..., jax.Array], *arguments: jax.Array) -> float:
    """Seconds of the quickest of several calls, compiled beforehand."""
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(PER_SAMPLE):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def cores() -> int:
    """Threads of XLA's pool: NPROC, which --threads sets, or the processors to be used."""
    if os.environ.get("NPROC", "").isdecimal():
        return int(os.environ["NPROC"])
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Where it was measured."""
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
    }


def cpu_name() -> str:
    """The model as Linux tells it, with family and model number, else as Python does."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = [line.partition(":") for line in file]
    except OSError:
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in reversed(lines)}
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    family, model = facts.get("cpu family"), facts.get("model")
    return facts["model name"] + (f" (family {family}, model {model})" if family else "")
