"""Arrays between processes keep their bits and their order; whoever is gone is named."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from planish.fast.parallel import group as groups
from planish.fast.parallel import streams
from planish.fast.parallel.group import Member, free_port, join_group
from planish.fast.parallel.streams import open_column, peers_of, stream_clock
from planish.reference.errors import PeerEndedError, PeerError
from tests.fast.parallel.threads import close_all, connected, run_all


@pytest.fixture
def pair():
    columns = connected(2)
    yield columns[0].at(1), columns[1].at(0)
    close_all(columns)


def test_every_array_arrives_with_its_bits(pair):
    near, far = pair
    odd = np.array([0x7FC12345, 0x80000000, 0xFF800001, 1], np.uint32).view(np.float32)
    arrays = {
        "odd": odd,
        "scalar": np.array(7, np.int32),
        "empty": np.zeros((0, 3), np.int8),
        "transposed": np.arange(6, dtype=np.int32).reshape(2, 3).T,
    }
    near.send("hidden", arrays, number=3)
    found = far.expect("hidden")
    assert found.facts == {"number": 3}
    for name, array in arrays.items():
        assert found.arrays[name].dtype == array.dtype
        assert found.arrays[name].shape == array.shape
        assert found.arrays[name].tobytes() == array.tobytes()


def test_sending_does_not_wait_for_the_reader(pair):
    near, far = pair
    large = np.arange(2**22, dtype=np.int32)  # more than sockets hold
    for number in range(3):
        near.send("result", {"x": large}, number=number)
    assert [far.expect("result").facts["number"] for _ in range(3)] == [0, 1, 2]


def test_one_that_has_ended_is_named(pair):
    near, far = pair
    near.connection.shutdown(socket.SHUT_RDWR)
    with pytest.raises(PeerEndedError, match="process 0 of 2 has ended"):
        far.receive()


def test_another_kind_of_message_is_an_error(pair):
    near, far = pair
    near.send("clock", seconds=1.0)
    with pytest.raises(PeerError, match="sends clock where hidden is expected"):
        far.expect("hidden")


@pytest.mark.parametrize(
    ("process", "stages", "parts", "peers"),
    [
        (0, 1, 3, [1, 2]),
        (1, 1, 3, [0]),
        (0, 3, 1, [1, 2]),
        (1, 3, 1, [0, 2]),
        (3, 2, 2, [0, 1]),
        (2, 2, 2, [0]),
    ],
)
def test_a_process_knows_its_column_and_process_0(process, stages, parts, peers):
    assert peers_of(process, stages, parts) == peers


def test_every_process_reads_the_clock_of_process_0():
    columns = connected(3)
    clocks = [stream_clock(one) for one in columns]
    found = run_all([lambda clock=clock: [clock(), clock()] for clock in clocks])
    assert found[0] == found[1] == found[2]
    assert found[0][0] < found[0][1]
    close_all(columns)


def join_all(count, call):
    """What each process's call on its group gives, or its error."""
    port = free_port("127.0.0.1")

    def join(index):
        group = join_group(Member("127.0.0.1", port, count, index))
        try:
            return call(group)
        except PeerError as problem:
            return problem
        finally:
            group.close()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(join, range(count)))


def test_a_group_connects_its_columns():
    columns = join_all(4, lambda group: open_column(group, 2, 2))
    assert [sorted(column.streams) for column in columns] == [[1, 2, 3], [0, 3], [0], [0, 1]]
    assert columns[2].jax_address == columns[3].jax_address != columns[0].jax_address
    columns[1].at(1).send("hidden", {"x": np.ones(2, np.float32)})
    assert columns[3].at(0).expect("hidden").arrays["x"].tolist() == [1, 1]
    close_all(columns)


def test_a_stranger_is_turned_away(monkeypatch):
    monkeypatch.setattr(groups, "JOIN_SECONDS", 5.0)
    monkeypatch.setattr(streams, "JOIN_SECONDS", 5.0)
    reach = streams.reach

    def reach_late(host, port, process, key):
        for hello in (b"GET / HTTP/1.1\r\n", f"{'0' * 32} {process}\n".encode()):
            with socket.create_connection((host, port)) as stranger:
                stranger.sendall(hello)
                assert stranger.recv(1) == b""
        return reach(host, port, process, key)

    monkeypatch.setattr(streams, "reach", reach_late)
    columns = join_all(2, lambda group: open_column(group, 2, 1))
    assert [sorted(column.streams) for column in columns] == [[1], [0]]
    close_all(columns)


def test_one_that_does_not_connect_is_named(monkeypatch):
    monkeypatch.setattr(streams, "JOIN_SECONDS", 0.5)
    monkeypatch.setattr(streams, "reach", lambda *_: socket.socket())
    found = join_all(2, lambda group: open_column(group, 2, 1))
    assert str(found[0]) == "process 1 did not connect"
    for stream in found[1].streams.values():
        stream.close()
