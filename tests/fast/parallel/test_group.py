"""Processes that find each other, agree and notice when one ends: here as threads on loopback."""

from __future__ import annotations

import queue
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from planish.fast.parallel import group as groups
from planish.fast.parallel.group import Link, Member, compare, free_port, join_group
from planish.reference.errors import PeerEndedError, PeerError


@pytest.fixture
def port():
    return free_port("127.0.0.1")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(groups, "JOIN_SECONDS", 1.0)
    monkeypatch.setattr(groups, "AGREE_SECONDS", 5.0)


def run_all(*calls):
    """Each call in a thread: its result, or its error."""

    def catch(call):
        try:
            return call()
        except PeerError as problem:
            return problem

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(catch, calls))


def join_all(port, *members):
    """Join as each (processes, process)."""
    made = [Member("127.0.0.1", port, count, index) for count, index in members]
    return run_all(*(lambda member=member: join_group(member) for member in made))


@pytest.fixture
def trio(port):
    """Three joined processes."""
    found = join_all(port, (3, 0), (3, 2), (3, 1))
    yield sorted(found, key=lambda one: one.member.process)
    for one in found:
        one.close()


def test_all_find_process_0(trio):
    assert [one.member.process for one in trio] == [0, 1, 2]
    assert sorted(trio[0].links) == [1, 2]
    assert len({one.jax_port for one in trio}) == 1


def test_equal_facts_agree_and_a_difference_is_an_error_everywhere(trio):
    same = {"planish": "1", "model": "ab"}
    assert run_all(*(lambda one=one: one.agree(same) for one in trio)) == [None] * 3
    other = {"planish": "1", "model": "cd"}
    found = run_all(
        lambda: trio[0].agree(same), lambda: trio[1].agree(same), lambda: trio[2].agree(other)
    )
    line = "model: differs on process 2; expected as on process 0: ab, found cd"
    assert [str(problem) for problem in found] == [line] * 3


def test_a_missing_fact_differs():
    assert compare({"a": "1"}, 1, {}) is not None
    assert compare({"a": "1"}, 1, {"a": "1", "b": "2"}) is None


def test_a_process_that_ends_before_the_others_agree_is_named(trio):
    trio[1].close()
    found = run_all(*(lambda one=one: one.agree({"a": "1"}) for one in (trio[0], trio[2])))
    assert [str(problem) for problem in found] == ["process 1 of 3 has ended"] * 2
    assert isinstance(found[0], PeerEndedError)


def test_one_that_leaves_is_no_fault_and_one_that_dies_is_everyones(trio):
    lines = queue.Queue()
    for one in trio:
        one.at_fault = lines.put
    trio[0].watch()
    trio[2].watch()
    trio[2].leave()
    assert trio[0].wait_for_fault(0.1) is None
    trio[1].close()
    assert {lines.get(timeout=5) for _ in range(2)} == {
        "process 1 of 3 has ended, so this one ends"
    }
    assert trio[0].fault == trio[2].fault == "process 1 of 3 has ended, so this one ends"


def test_a_missing_process_is_one_line_with_its_number(port):
    found = join_all(port, (3, 0), (3, 1))
    for problem in found:
        assert "process 2 of 3 did not join within 1 s" in str(problem)


def test_nobody_there_is_one_line(port):
    (problem,) = join_all(port, (2, 1))
    assert f"127.0.0.1:{port}: cannot be reached for 1 s" in str(problem)


def test_an_unknown_host_is_one_line():
    with pytest.raises(PeerError, match="has no such host"):
        join_group(Member("no such host.invalid", 1, 2, 1))


def test_a_port_in_use_is_one_line(port):
    with socket.create_server(("127.0.0.1", port)):
        (problem,) = join_all(port, (2, 0))
    assert f"--coordinator: cannot listen on 127.0.0.1:{port}: Address already in use" in str(
        problem
    )


def test_another_count_of_processes_is_refused_on_both(port):
    found = join_all(port, (2, 0), (3, 1))
    line = "--num_processes of process 1: bad value; expected 2, as process 0 was given, found 3"
    assert [str(problem) for problem in found] == [line] * 2


def test_the_same_number_twice_is_refused(port):
    found = join_all(port, (3, 0), (3, 1), (3, 1))
    assert all("--process_id: bad value" in str(problem) for problem in found)


def test_a_stranger_is_ignored(port):
    def strange():
        for _ in range(20):
            try:
                stranger = socket.create_connection(("127.0.0.1", port), 1)
            except OSError:
                continue
            with stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            return

    member = Member("127.0.0.1", port, 2, 0)
    one, _, other = run_all(
        lambda: join_group(member), strange, lambda: join_group(Member("127.0.0.1", port, 2, 1))
    )
    assert sorted(one.links) == [1] and sorted(other.links) == [0]
    one.close()
    other.close()


def test_a_message_is_one_object(port):
    with socket.create_server(("127.0.0.1", port)) as server:
        far = socket.create_connection(("127.0.0.1", port))
        link = Link(server.accept()[0])
    far.sendall(b"[1]\n")
    with pytest.raises(ValueError, match="1"):
        link.receive(1)
    far.close()
    link.close()
