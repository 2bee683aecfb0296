"""How long a gather between processes takes, by its bytes: what tensor parallelism adds to a step.

    python -m planish.compare.bench.gathers PORT PROCESSES PROCESS

is one of the processes that `planish plan --measure` starts. Each gather is one of a chain, as the
gathers of a model are, and follows a product that reads a mebibyte of weights: processes that have
just computed are not ready in the same microsecond, and gloo's threads have to wake up.
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
from planish.fast.parallel.collectives import connect_group
from planish.fast.parallel.group import Member, join_group
from planish.fast.parallel.mesh import TensorMesh

SIZES = (2**10, 2**12, 2**14, 2**16, 2**18, 2**20)  # bytes of the whole
WEIGHTS = 1024  # rows of the matrix that each link reads
CHAIN = 100  # gathers of one measurement
ROUNDS = 7


def measure_gathers(mesh: TensorMesh) -> dict[int, float]:
    """Seconds that one gather adds, by the bytes of what every process then has.

    The difference of two chains, with and without gathers; the median of ROUNDS.
    """
    found = {}
    weights = mesh.replicate(np.full((WEIGHTS, SIZES[0] // 4), 1e-4, np.float32))
    for size in SIZES:
        x = mesh.replicate(np.ones((1, 1, size // 4), np.float32))
        chains = [compile_chain(mesh, weights, x, gathers) for gathers in (True, False)]
        times = [[time_chain(chain, weights, x) for chain in chains] for _ in range(ROUNDS + 1)]
        found[size] = statistics.median(both - alone for both, alone in times[1:])
    return found


def time_chain(chain: Any, weights: jax.Array, x: jax.Array) -> float:
    """Seconds of one link of a chain."""
    start = time.perf_counter()
    chain(weights, x).block_until_ready()
    return (time.perf_counter() - start) / CHAIN


def compile_chain(mesh: TensorMesh, weights: jax.Array, x: jax.Array, gathers: bool) -> Any:
    """CHAIN products, each of what the one before gave and, with `gathers`, of all processes."""

    def step(weights: jax.Array, x: jax.Array) -> jax.Array:
        own = x.shape[-1] // mesh.parts
        part = lax.dynamic_slice_in_dim(x, lax.axis_index(AXIS) * own, own, axis=-1)
        part = part + (weights @ x[0, 0, : weights.shape[1]])[:1]
        if gathers:
            return gather_outputs([part], [own * mesh.parts])[0]
        return jnp.concatenate([part] * mesh.parts, axis=-1)

    def run(weights: jax.Array, x: jax.Array) -> jax.Array:
        found: jax.Array = lax.fori_loop(0, CHAIN, lambda _, x: step(weights, x), x)
        return found

    whole = PartitionSpec()
    mapped = jax.shard_map(
        run, mesh=mesh.mesh, in_specs=(whole, whole), out_specs=whole, check_vma=False
    )
    return jax.jit(mapped).lower(weights, x).compile()


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
    group = join_group(Member("127.0.0.1", port, processes, process))
    connect_group(group)
    group.watch()
    times = measure_gathers(TensorMesh(processes))
    group.leave()
    if process == 0:
        print(json.dumps(times))


if __name__ == "__main__":
    main(sys.argv[1:])
