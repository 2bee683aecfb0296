"""Processes that find each other, compare what they are about to run, and watch each other.

Each process keeps a TCP connection to process 0, on which lines of JSON pass:

    hello     from a process: which one it is, of how many     welcome   jax's port on process 0
    facts     what it runs: versions, flags, model             verdict   the first difference
    streams   where it listens for arrays (streams.py)         streams   where all do
    leave     it is done                                       failed    which process has ended

A connection that ends without `leave` means that its process has died; keepalive finds a machine
that is gone. Then every process of the group ends. The lines are not encrypted, as jax's and
gloo's are not: use a network that you trust.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from planish.reference.errors import PeerEndedError, PeerError, one_line

JOIN_SECONDS = 25.0  # until every process has to be there
AGREE_SECONDS = 900.0  # until every process has compiled its kernels
UNWIND_SECONDS = 5.0  # for the main thread to end by itself
LONGEST_LINE = 1 << 20
KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
ENDED = 2  # the exit code


@dataclass(frozen=True)
class Member:
    """One process of a group. process: 0 listens on the address, the others connect to it."""

    host: str
    port: int
    processes: int
    process: int

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


class Link:
    """A connection on which lines of JSON pass."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._lines = connection.makefile("rb")

    def close(self) -> None:
        """End the connection."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self._lines.close()
        self.connection.close()

    def send(self, **message: Any) -> None:
        """Send a message; OSError if the other side is gone."""
        self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float | None) -> dict[str, Any]:
        """The next message; EOFError at the end, OSError or ValueError for anything else."""
        self.connection.settimeout(seconds)
        line = self._lines.readline(LONGEST_LINE)
        if not line:
            raise EOFError
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError(line[:40])
        return message


class Group:
    """The processes of one run, as one of them sees them.

    links: of process 0 to every other one, of another one to process 0.
    """

    def __init__(self, member: Member, links: dict[int, Link], jax_port: int):
        self.member, self.links, self.jax_port = member, links, jax_port
        self.fault: str | None = None
        self.at_fault: Callable[[str], object] = end_process
        self._faulty = threading.Event()
        self._lock = threading.Lock()

    def agree(self, facts: Mapping[str, str]) -> None:
        """Raise PeerError on every process if they differ in one of these facts."""
        own = dict(facts)
        if self.member.process > 0:
            self._send(0, facts=own)
            problem = self._receive(0).get("verdict")
        else:
            try:
                others = {i: self._receive(i).get("facts", {}) for i in self.links}
            except PeerError as ended:
                self._tell(verdict=str(ended))
                raise
            problem = next(filter(None, (compare(own, i, x) for i, x in others.items())), None)
            self._tell(verdict=problem)
        if problem is not None:
            raise PeerError(str(problem))

    def exchange(self, name: str, own: Any, key: str) -> dict[str, Any]:
        """What every process says under a name: {"all": {process: own}, "key": of process 0}."""
        if self.member.process > 0:
            self._send(0, **{name: own})
            return dict(self._receive(0)[name])
        found = {"0": own} | {str(i): self._receive(i).get(name) for i in self.links}
        table = {"all": found, "key": key}
        self._tell(**{name: table})
        return table

    def watch(self) -> None:
        """From now on end this process when another one dies."""
        for index in self.links:
            threading.Thread(target=self._watch, args=(index,), daemon=True).start()

    def close(self) -> None:
        """End the connections."""
        for link in self.links.values():
            link.close()

    def leave(self) -> None:
        """Say that this process is done."""
        self._tell(leave=True)

    def fail(self, problem: str) -> None:
        """Say that this process ends and why, so that the others end, too."""
        self._tell(failed=problem)

    def wait_for_fault(self, seconds: float) -> str | None:
        """What ended the group, if that becomes known soon."""
        self._faulty.wait(seconds)
        return self.fault

    def describe(self, index: int) -> str:
        """Process 1 of 2."""
        return f"process {index} of {self.member.processes}"

    def _watch(self, index: int) -> None:
        problem = f"{self.describe(index)} has ended, so this one ends"
        try:
            while True:
                message = self.links[index].receive(None)
                if message.get("leave"):
                    return
                if "failed" in message:
                    problem = str(message["failed"])
                    break
        except (OSError, EOFError, ValueError):
            pass
        self._end(problem)

    def _end(self, problem: str) -> None:
        """Note what ended the group, say so, and end this process."""
        with self._lock:
            if self.fault is not None:
                return
            self.fault = problem
        self._faulty.set()
        if self.member.process == 0:
            self._tell(failed=problem)
        self.at_fault(problem)

    def _tell(self, **message: Any) -> None:
        for link in self.links.values():
            try:
                link.send(**message)
            except OSError:
                continue

    def _send(self, index: int, **message: Any) -> None:
        try:
            self.links[index].send(**message)
        except OSError as problem:
            what = f"{self.describe(index)} has ended: {problem.strerror}"
            raise PeerEndedError(what) from None

    def _receive(self, index: int) -> dict[str, Any]:
        try:
            return self.links[index].receive(AGREE_SECONDS)
        except TimeoutError:
            raise PeerError(f"{self.describe(index)} does not answer") from None
        except (OSError, EOFError, ValueError):
            raise PeerEndedError(f"{self.describe(index)} has ended") from None


def end_process(problem: str, code: int = ENDED, silent: bool = False) -> None:
    """End this process: by SIGTERM, which unwinds the main thread, or after a while at once."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(UNWIND_SECONDS)  # in the thread that watches
    if not silent:
        sys.stderr.write(f"error: {one_line(problem)}\n")
        sys.stderr.flush()
    os._exit(code)


def compare(own: Mapping[str, str], index: int, other: Mapping[str, str]) -> str | None:
    """The first fact in which a process differs from process 0, as one line."""
    for name in own:
        if other.get(name) != own[name]:
            expected, found = own[name], other.get(name)
            where = f"as on process 0: {expected}"
            return str(
                PeerError(f"differs on process {index}", name=name, expected=where, found=found)
            )
    return None


def join_group(member: Member) -> Group:
    """Find the other processes. Raises PeerError if one is missing after JOIN_SECONDS."""
    deadline = time.monotonic() + JOIN_SECONDS
    return listen(member, deadline) if member.process == 0 else connect(member, deadline)


def listen(member: Member, deadline: float) -> Group:
    """Process 0: wait for the others."""
    try:
        server = socket.create_server((member.host, member.port))
    except OSError as error:
        reason = f"cannot listen on {member.address}: {error.strerror or error}"
        raise PeerError(reason, name="--coordinator") from None
    links: dict[int, Link] = {}
    with server:
        while len(links) < member.processes - 1:
            link, hello = accept(server, member, deadline, links)
            if (problem := find_problem(hello, member, links)) is not None:
                turn_away((link, *links.values()), problem)
                raise PeerError(problem)
            links[hello["process"]] = link
    group = Group(member, links, free_port(member.host))
    for index in links:
        group._send(index, welcome=group.jax_port)
    return group


def turn_away(links: Iterable[Link], problem: str) -> None:
    """Say why there will be no group."""
    for link in links:
        with contextlib.suppress(OSError):
            link.send(refused=problem)
        link.close()


def accept(
    server: socket.socket, member: Member, deadline: float, links: Mapping[int, Link]
) -> tuple[Link, dict[str, Any]]:
    """The next process and its hello; whoever says something else is not one."""
    while True:
        server.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            link = Link(server.accept()[0])
        except TimeoutError:
            missing = [i for i in range(1, member.processes) if i not in links]
            problem = f"did not join within {JOIN_SECONDS:.0f} s"
            problem = f"process {', '.join(map(str, missing))} of {member.processes} {problem}"
            turn_away(links.values(), problem)
            raise PeerError(problem, name=f"--coordinator {member.address}") from None
        try:
            hello = link.receive(5)
        except (OSError, EOFError, ValueError):
            link.close()
            continue
        if type(hello.get("process")) is int:
            return link, hello
        link.close()


def find_problem(hello: Mapping[str, Any], member: Member, links: Mapping[int, Link]) -> str | None:
    """Why a process cannot join."""
    index, count = hello["process"], hello.get("processes")
    if count != member.processes:
        expected = f"{member.processes}, as process 0 was given"
        wrong = {"name": f"--num_processes of process {index}", "expected": expected}
        return str(PeerError("bad value", **wrong, found=count))
    if index in links or not 1 <= index < member.processes:
        expected = "another number for each process"
        return str(PeerError("bad value", name="--process_id", expected=expected, found=index))
    return None


def connect(member: Member, deadline: float) -> Group:
    """Another process: find process 0."""
    link = Link(reach(member, deadline))
    try:
        link.send(process=member.process, processes=member.processes)
        answer = link.receive(max(deadline - time.monotonic(), 0) + 3)
    except (OSError, EOFError, ValueError):
        link.close()
        problem = f"does not answer within {JOIN_SECONDS:.0f} s"
        raise PeerError(problem, name=f"--coordinator {member.address}") from None
    if "welcome" not in answer:
        link.close()
        raise PeerError(str(answer.get("refused", "refuses this process")))
    return Group(member, {0: link}, int(answer["welcome"]))


def reach(member: Member, deadline: float) -> socket.socket:
    """A connection to process 0, which may start later."""
    while True:
        left = deadline - time.monotonic()
        try:
            return socket.create_connection((member.host, member.port), max(left, 0.001))
        except socket.gaierror as problem:
            raise PeerError(
                f"has no such host: {problem.strerror}", name=f"--coordinator {member.address}"
            ) from None
        except OSError as problem:
            if left <= 0:
                reason = (
                    f"cannot be reached for {JOIN_SECONDS:.0f} s: {problem.strerror or problem}"
                )
                raise PeerError(reason, name=f"--coordinator {member.address}") from None
        time.sleep(min(0.1, max(left, 0)))


def free_port(host: str) -> int:
    """A port that nothing listens on at the moment."""
    with socket.create_server((host, 0)) as server:
        return int(server.getsockname()[1])
