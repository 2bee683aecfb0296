"""The machine's peak rates, measured in the same run as the engines.

    memory    bytes read per second, 512 MiB at a time, by the threads that run the kernels
    int8      operations per second of byte products in registers (AMX, VNNI, dot product), the
              same without matrix tiles, and XLA's product of INT8 matrices
    float32   operations per second of XLA's matrix product

Without native kernels the first two are XLA's sum of an array and XLA's INT8 product: an upper
bound for the portable form, below what the machine can do. Each rate is sampled once per round, in
turn with the engines, and the median counts, as it does for them: a shared machine is faster at
some times than at others.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from planish.fast.native import roofline

READ_BYTES = 2**29  # larger than any cache
ROUNDS = 200_000  # of 2048 operations, for each of 64 units
PER_SAMPLE = 3  # measurements in a sample; the quickest counts


class PeakRates:
    """Samples of the peak rates; `medians()` of them are what counts."""

    def __init__(self, kernels: bool, names: Sequence[str] | None = None):
        """names: of the rates that are sampled; None: all."""
        array = jax.device_put(jnp.ones((64, READ_BYTES // 64), jnp.uint8))
        self.measures: dict[str, Callable[[], float]] = {
            "memory_read_bytes_per_second": partial(
                read_natively if kernels else read_with_xla, array
            ),
            "int8_operations_per_second": multiply_natively
            if kernels
            else partial(multiply_with_xla, jnp.int8, jnp.int32),
            "float32_operations_per_second": partial(multiply_with_xla, jnp.float32, jnp.float32),
        }
        if kernels:
            self.measures["int8_lanes_operations_per_second"] = partial(multiply_natively, False)
            self.measures["int8_xla_operations_per_second"] = partial(
                multiply_with_xla, jnp.int8, jnp.int32
            )
        if names is not None:
            self.measures = {name: self.measures[name] for name in names}
        self.samples: dict[str, list[float]] = {name: [] for name in self.measures}

    def sample(self) -> None:
        """Take one more sample of each."""
        for name, measure in self.measures.items():
            self.samples[name].append(measure())

    def medians(self) -> dict[str, float]:
        """The medians so far."""
        return {name: statistics.median(found) for name, found in self.samples.items()}


def read_natively(array: jax.Array) -> float:
    """Bytes per second that the kernels' threads read."""
    no_rounds = jnp.zeros(2, jnp.int32)
    return array.nbytes / time_fastest(jax.jit(roofline.probe), array.reshape(-1), no_rounds)


def multiply_natively(tiles: bool = True) -> float:
    """Operations per second of byte products in registers, by matrix tiles if there are any."""
    nothing = jnp.zeros(0, jnp.uint8)
    rounds = jnp.array([ROUNDS, 0] if tiles else [0, ROUNDS], jnp.int32)
    return 64 * ROUNDS * 2048 / time_fastest(jax.jit(roofline.probe), nothing, rounds)


def read_with_xla(array: jax.Array) -> float:
    """Bytes per second of a sum by XLA."""
    words = jax.lax.bitcast_convert_type(array.reshape(64, -1, 4), jnp.float32)
    return array.nbytes / time_fastest(jax.jit(lambda x: x.sum(axis=1)), words)


def multiply_with_xla(
    kind: DTypeLike, total: DTypeLike, rows: int = 512, inputs: int = 2048, outputs: int = 5632
) -> float:
    """Operations per second of XLA's matrix product, [512, 2048] x [5632, 2048]."""
    x, w = jnp.ones((rows, inputs), kind), jnp.ones((outputs, inputs), kind)
    contract = (((1,), (1,)), ((), ()))
    dot = jax.jit(lambda x, w: lax.dot_general(x, w, contract, preferred_element_type=total))
    return 2 * rows * inputs * outputs / time_fastest(dot, x, w)


def time_fastest(function: Callable[..., jax.Array], *arguments: jax.Array) -> float:
    """Seconds of the quickest of several calls, the function compiled before."""
    function(*arguments).block_until_ready()
    seconds = []
    for _ in range(PER_SAMPLE):
        start = time.perf_counter()
        function(*arguments).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def count_threads() -> int:
    """Threads of XLA's pool: NPROC, which --threads sets, or this process's processors."""
    if os.environ.get("NPROC", "").isdecimal():
        return int(os.environ["NPROC"])
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_machine() -> dict[str, Any]:
    """The processor and the versions with which it was measured, for JSON."""
    return {
        "cpu": name_cpu(),
        "cores": count_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": version("jaxlib"),
    }


def name_cpu() -> str:
    """The processor's name from /proc/cpuinfo, with family and model number, else from Python."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        lines = [line.partition(":") for line in text.splitlines()]
    except OSError:
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in reversed(lines)}
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    family, model = facts.get("cpu family"), facts.get("model")
    return facts["model name"] + (f" (family {family}, model {model})" if family else "")
