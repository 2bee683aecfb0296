"""The processors of launched processes, on machines that these files describe."""

from __future__ import annotations

import pytest

from planish.terminal.processors import parse_list, share_processors


@pytest.fixture
def machine(tmp_path):
    """Write a machine: node lists, and cores of two threads each, i and i + half."""

    def write(*nodes, threads=0):
        for number, text in enumerate(nodes):
            node = tmp_path / f"node/node{number}"
            node.mkdir(parents=True)
            (node / "cpulist").write_text(f"{text}\n")
        for cpu in range(threads):
            topology = tmp_path / f"cpu/cpu{cpu}/topology"
            topology.mkdir(parents=True)
            (topology / "core_id").write_text(str(cpu % (threads // 2)))
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("nodes", "usable", "count", "expected"),
    [
        (("0-3",), range(4), 2, [[0, 1], [2, 3]]),
        (("0-3", "4-7"), range(8), 2, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (("0-3", "4-7"), range(8), 1, [[0, 1, 2, 3, 4, 5, 6, 7]]),
        (("0-3", "4-7"), range(8), 4, [[0, 1], [4, 5], [2, 3], [6, 7]]),
        (("0-3", "4-7"), range(4, 8), 2, [[4, 5], [6, 7]]),
        (("0-1",), range(2), 4, [[0], [1], [0], [1]]),
        ((), range(3), 2, [[0], [1, 2]]),
    ],
)
def test_processes_have_nodes_or_equal_parts_of_them(machine, nodes, usable, count, expected):
    assert share_processors(count, machine(*nodes), usable) == expected


def test_a_cores_threads_stay_in_one_process(machine):
    assert share_processors(2, machine("0-7", threads=8), range(8)) == [[0, 4, 1, 5], [2, 6, 3, 7]]


def test_lists_as_the_kernel_writes_them():
    assert parse_list("0-3,8,10-11\n") == [0, 1, 2, 3, 8, 10, 11]
    assert parse_list("\n") == []
