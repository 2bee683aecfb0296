"""From a group of processes to where an engine's arrays go: its options, on every process."""

from __future__ import annotations

from typing import Any

from planish.fast.parallel.collectives import connect_group, connect_jax, shared_clock
from planish.fast.parallel.group import Group
from planish.fast.parallel.mesh import TensorMesh
from planish.fast.parallel.stages import Results, Stage
from planish.fast.parallel.streams import Column, open_column, stream_clock
from planish.fast.session.placing import OneDevice, Placement


def connect_mesh(group: Group) -> dict[str, Any]:
    """The options of an engine whose linears are cut for all processes."""
    connect_group(group)
    mesh = TensorMesh(group.member.processes)
    return {"placement": mesh, "clock": shared_clock(mesh)}


def connect_stages(group: Group, stages: int, parts: int) -> tuple[Column, dict[str, Any]]:
    """The streams, and the options of an engine in stages of `parts` processes each.

    jax connects the processes of a stage only. Raises PeerError if one does not answer.
    """
    column = open_column(group, stages, parts)
    inner: Placement = OneDevice()
    if parts > 1:
        connect_jax(column.jax_address, parts, column.part)
        inner = TensorMesh(parts)
    placement = inner if stages == 1 else Stage(inner, column, Results(column))
    return column, {"placement": placement, "clock": stream_clock(column)}
