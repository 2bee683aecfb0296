"""jax's connections between the processes of a group: gloo's collectives, one device for each.

jax's coordination service is needed only until gloo has connected every pair. It is then shut down:
left running, it would abort the other processes with a page of text when process 0 dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from planish.fast.parallel.backend import AXIS
from planish.fast.parallel.group import JOIN_SECONDS, Group
from planish.fast.parallel.mesh import TensorMesh
from planish.reference.errors import PeerError, one_line

TICK = 1e-4  # seconds; int32 counts them for 59 hours


def connect_group(group: Group) -> None:
    """Connect jax to all processes of a group, as connect_jax."""
    member = group.member
    connect_jax(f"{member.host}:{group.jax_port}", member.processes, member.process)


def connect_jax(address: str, processes: int, process: int) -> None:
    """Connect jax to other processes, of which the first listens at the address.

    Call it before jax's first computation. Raises PeerError if that fails.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM
    try:
        with no_chatter():
            jax.distributed.initialize(
                address,
                processes,
                process,
                cluster_detection_method="deactivate",
                initialization_timeout=round(JOIN_SECONDS),
                coordinator_bind_address=address,
            )
            first_value(TensorMesh(processes), 0)
            jax.distributed.shutdown()
    except (RuntimeError, ValueError) as problem:
        raise PeerError(f"jax's processes do not connect: {one_line(str(problem))}") from None


@contextlib.contextmanager
def no_chatter() -> Iterator[None]:
    """Drop what gloo prints on standard output while it connects."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def first_value(mesh: TensorMesh, value: int) -> int:
    """The value that process 0 gives, int32."""
    own = mesh.join([np.array([value], np.int32) for _ in mesh.own], PartitionSpec(AXIS))
    return int(np.asarray(_first(mesh.mesh)(own))[0])


def shared_clock(mesh: TensorMesh) -> Callable[[], float]:
    """The clock of process 0, so that every process decides alike; never the same time twice."""
    start, last = time.perf_counter(), 0

    def read() -> float:
        nonlocal last
        last = max(last + 1, first_value(mesh, round((time.perf_counter() - start) / TICK)))
        return last * TICK

    return read


_known: dict[Mesh, Callable[[jax.Array], jax.Array]] = {}


def _first(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """A program that gives every device the first one's value."""
    if mesh not in _known:

        def first(value: jax.Array) -> jax.Array:
            return lax.all_gather(value, AXIS)[0]

        spec = PartitionSpec(AXIS), PartitionSpec()
        whole = jax.shard_map(
            first, mesh=mesh, in_specs=spec[0], out_specs=spec[1], check_vma=False
        )
        _known[mesh] = jax.jit(whole)
    return _known[mesh]
