"""How long a gather between processes takes, by its bytes: what tensor parallelism adds to a step.

    python -m planish.compare.bench.gathers PORT PROCESSES PROCESS

is one of the processes that `planish plan --measure` starts. Each gather is one of a chain, as the
gathers of a model are: it waits for the one before.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from planish.fast.parallel.backend import AXIS, gather_outputs
from planish.fast.parallel.collectives import connect_jax
from planish.fast.parallel.group import Member, join
from planish.fast.parallel.mesh import TensorMesh

SIZES = (2**10, 2**12, 2**14, 2**16, 2**18, 2**20)  # bytes of the whole
CHAIN = 100  # gathers of one measurement
ROUNDS = 7


def measure_gathers(mesh: TensorMesh) -> dict[int, float]:
    """Seconds of one gather, by the bytes of what every process then has; the median of ROUNDS."""
    found = {}
    for size in SIZES:
        x = mesh.replicate(np.ones((1, 1, size // 4), np.float32))
        chain = compile_chain(mesh, x)
        chain(x).block_until_ready()
        times = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            chain(x).block_until_ready()
            times.append((time.perf_counter() - start) / CHAIN)
        found[size] = statistics.median(times)
    return found


def compile_chain(mesh: TensorMesh, x: jax.Array) -> Any:
    """CHAIN gathers of x [1, 1, N], each of what the one before gave."""

    def step(_: int, x: jax.Array) -> jax.Array:
        own = x.shape[-1] // mesh.parts
        part = lax.dynamic_slice_in_dim(x, lax.axis_index(AXIS) * own, own, axis=-1)
        return gather_outputs([part + jnp.float32(1)], [own * mesh.parts])[0]

    def run(x: jax.Array) -> jax.Array:
        return lax.fori_loop(0, CHAIN, step, x)

    whole = PartitionSpec()
    mapped = jax.shard_map(run, mesh=mesh.mesh, in_specs=whole, out_specs=whole, check_vma=False)
    return jax.jit(mapped).lower(x).compile()


def fit_line(times: dict[int, float], parts: int) -> tuple[float, float]:
    """Latency in seconds and bytes per second of t = latency + bytes (P - 1) / P / rate.

    The latency is that of the smallest gather, the rate that of the largest.
    """
    smallest, largest = min(times), max(times)
    moved = (largest - smallest) * (parts - 1) / parts
    return times[smallest], moved / max(times[largest] - times[smallest], 1e-9)


def main(words: Sequence[str]) -> None:
    port, processes, process = map(int, words)
    jax.config.update("jax_platforms", "cpu")
    group = join(Member("127.0.0.1", port, processes, process))
    connect_jax(group)
    group.watch()
    times = measure_gathers(TensorMesh(processes))
    group.leave()
    if process == 0:
        print(json.dumps(times))


if __name__ == "__main__":
    main(sys.argv[1:])
