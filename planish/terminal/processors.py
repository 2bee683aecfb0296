"""The processors of each process that is launched: cores whole, NUMA nodes before parts of them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

SYSTEM = Path("/sys/devices/system")


def share_processors(
    count: int, system: Path = SYSTEM, usable: Sequence[int] | None = None
) -> list[list[int]]:
    """The processors of each of `count` processes, out of those that this process may use.

    Processes are spread over the NUMA nodes, and those of one node share its cores; hardware
    threads of one core stay in one process. More processes than processors share them.
    """
    usable = sorted(os.sched_getaffinity(0)) if usable is None else usable
    nodes = split_nodes(usable, system)
    if len(nodes) > count:  # a process has several whole nodes
        return [list(itertools.chain(*nodes[i::count])) for i in range(count)]
    found: list[list[int]] = [[] for _ in range(count)]
    for index, node in enumerate(nodes):
        members = range(index, count, len(nodes))
        for place, member in enumerate(members):
            found[member] = cut_evenly(sort_cores(node, system), place, len(members))
    return found


def split_nodes(usable: Sequence[int], system: Path) -> list[list[int]]:
    """The usable processors of each NUMA node that has any; one node where the system is silent."""
    lists = sorted(system.glob("node/node[0-9]*/cpulist"), key=lambda path: path.parent.name)
    nodes = [[n for n in parse_list(path.read_text()) if n in usable] for path in lists]
    nodes = [node for node in nodes if node]
    return nodes if sum(map(len, nodes)) == len(usable) else [list(usable)]


def sort_cores(processors: Sequence[int], system: Path) -> list[int]:
    """Processors in the order of their cores, so that a core's hardware threads are neighbours."""

    def core(number: int) -> tuple[int, int]:
        path = system / f"cpu/cpu{number}/topology/core_id"
        return int(path.read_text()) if path.exists() else number, number

    return sorted(processors, key=core)


def cut_evenly(items: Sequence[int], index: int, parts: int) -> list[int]:
    """Part `index` of `parts` of a list; of a list that is too short, one item."""
    if parts > len(items):
        return [items[index % len(items)]]
    return list(items[len(items) * index // parts : len(items) * (index + 1) // parts])


def parse_list(text: str) -> list[int]:
    """0-3,8 -> [0, 1, 2, 3, 8], as the kernel writes lists."""
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found
