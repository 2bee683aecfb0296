"""Connections between processes on which arrays pass: activations, results, and what to run.

    from            to                        what
    each stage      the next                  hidden states of every program (stages.py)
    the last stage  all others of its column  results
    process 0       all                       its clock, and what a server runs (leading.py)

Process p is part p % T of stage p // T; a column is the processes with the same part. Each message
is a line of JSON and the arrays' bytes, so every float arrives with its bits. Sending never waits,
as a thread writes: a stage computes its next chunk while the last one is on its way. Messages
between two processes arrive in order. The connections are not encrypted, as gloo's are not.
"""

from __future__ import annotations

import json
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.fast.parallel.group import JOIN_SECONDS, LONGEST_LINE, Group, Link, free_port
from planish.reference.errors import PeerEndedError, PeerError

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Message:
    """What one process sends to another. kind says what it is, `facts` are of JSON."""

    kind: str
    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Stream:
    """A connection to one other process, which `name` says."""

    def __init__(self, connection: socket.socket, name: str):
        self.connection, self.name = connection, name
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(None)
        self._bytes = connection.makefile("rb")
        self._waiting: queue.SimpleQueue[list[Any] | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()

    def send(self, kind: str, arrays: Arrays | None = None, **facts: Any) -> None:
        """Send a message; the arrays must not change afterwards."""
        contiguous = {k: np.asarray(x, order="C") for k, x in (arrays or {}).items()}
        forms = {k: [x.dtype.str, x.shape] for k, x in contiguous.items()}
        head = json.dumps({"kind": kind, "facts": facts, "arrays": forms}).encode() + b"\n"
        self._waiting.put([head, *(x.reshape(-1).view(np.uint8) for x in contiguous.values())])

    def receive(self) -> Message:
        """The next message; PeerEndedError if the other process has ended."""
        try:
            head = json.loads(self._bytes.readline(LONGEST_LINE))
            arrays = {name: self._read(*form) for name, form in head["arrays"].items()}
        except (OSError, EOFError, ValueError):
            raise PeerEndedError(f"{self.name} has ended") from None
        return Message(kind=head["kind"], facts=head["facts"], arrays=arrays)

    def expect(self, kind: str) -> Message:
        """The next message, which must be of this kind."""
        message = self.receive()
        if message.kind != kind:
            raise PeerError(f"{self.name} sends {message.kind} where {kind} is expected")
        return message

    def finish(self) -> None:
        """Wait until all is written."""
        self._waiting.put(None)
        self._writer.join()

    def close(self) -> None:
        """Write what waits, and end the connection."""
        self.finish()
        self._bytes.close()
        self.connection.close()

    def _read(self, kind: str, shape: list[int]) -> np.ndarray:
        array = np.empty(shape, np.dtype(kind))
        view = array.reshape(-1).view(np.uint8).data
        while view:
            count = self._bytes.readinto(view)
            if not count:
                raise EOFError
            view = view[count:]
        return array

    def _write(self) -> None:
        while (parts := self._waiting.get()) is not None:
            try:
                for part in parts:
                    self.connection.sendall(part)
            except OSError:  # the reader, or the group, says that the other process has ended
                return


@dataclass(frozen=True, kw_only=True)
class Column:
    """The streams of one process: to process 0 or from it to all, and to its column's stages."""

    process: int
    stages: int
    parts: int
    streams: Mapping[int, Stream]
    jax_address: str = ""  # where the first process of this stage listens for jax

    @property
    def part(self) -> int:
        """Which part of its stage this process is."""
        return self.process % self.parts

    @property
    def stage(self) -> int:
        """This process's stage."""
        return self.process // self.parts

    @property
    def is_first(self) -> bool:
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        return self.stage == self.stages - 1

    def at(self, stage: int) -> Stream:
        """The stream to this column's process of another stage."""
        return self.streams[stage * self.parts + self.part]

    def others(self) -> list[Stream]:
        """The streams to all other stages of this column."""
        return [self.at(stage) for stage in range(self.stages) if stage != self.stage]

    def leader(self) -> Stream:
        """The stream to process 0."""
        return self.streams[0]

    def finish(self) -> None:
        """Wait until all is written."""
        for stream in self.streams.values():
            stream.finish()


def peers_of(process: int, stages: int, parts: int) -> list[int]:
    """The processes to which one has a stream: those of its column, and process 0 to all."""
    every = range(stages * parts)
    if process == 0:
        return [p for p in every if p != 0]
    column = [p for p in every if p % parts == process % parts]
    return sorted({0, *column} - {process})


def open_column(group: Group, stages: int, parts: int) -> Column:
    """Connect this process with its peers. Raises PeerError if one does not answer."""
    process, peers = group.member.process, peers_of(group.member.process, stages, parts)
    with socket.create_server((own_host(group), 0), backlog=max(len(peers), 1)) as server:
        host, port = server.getsockname()[:2]
        table = group.exchange("streams", [host, port, free_port(host)], secrets.token_hex(16))
        key, deadline = str(table["key"]), time.monotonic() + JOIN_SECONDS
        places = {int(i): (a, b) for i, (a, b, _) in table["all"].items()}
        found = {p: reach(*places[p], process, key) for p in peers if p < process}
        found |= await_peers(server, [p for p in peers if p > process], key, deadline)
    streams = {p: Stream(connection, group.describe(p)) for p, connection in found.items()}
    host, _, jax_port = table["all"][str(process // parts * parts)]
    return Column(
        process=process,
        stages=stages,
        parts=parts,
        streams=streams,
        jax_address=f"{host}:{jax_port}",
    )


def own_host(group: Group) -> str:
    """The address of this process that the others reach: on which it talks with process 0."""
    link: Link = next(iter(group.links.values()))
    return str(link.connection.getsockname()[0])


def reach(host: str, port: int, process: int, key: str) -> socket.socket:
    """A connection to a process that listens."""
    try:
        connection = socket.create_connection((host, port), JOIN_SECONDS)
        connection.sendall(f"{key} {process}\n".encode())
    except OSError as problem:
        reason = f"cannot be reached: {problem.strerror or problem}"
        raise PeerError(reason, name=f"process at {host}:{port}") from None
    return connection


def await_peers(
    server: socket.socket, wanted: list[int], key: str, deadline: float
) -> dict[int, socket.socket]:
    """Connections from processes; whoever does not know the key is not one."""
    found: dict[int, socket.socket] = {}
    while len(found) < len(wanted):
        server.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            connection = server.accept()[0]
        except TimeoutError:
            missing = ", ".join(str(p) for p in wanted if p not in found)
            raise PeerError(f"process {missing} did not connect") from None
        process = read_hello(connection, key)
        if process in wanted and process not in found:
            found[process] = connection
        else:
            connection.close()
    return found


def read_hello(connection: socket.socket, key: str) -> int | None:
    """The number of a process that knows the key."""
    connection.settimeout(5)
    try:
        with connection.makefile("rb", buffering=0) as lines:
            given, _, number = lines.readline(100).decode("ascii").strip().partition(" ")
        return int(number) if secrets.compare_digest(given, key) else None
    except (OSError, ValueError):
        return None


def stream_clock(column: Column) -> Callable[[], float]:
    """The clock of process 0, so that every process decides alike; never the same time twice."""
    last = 0.0

    def read() -> float:
        nonlocal last
        if column.process > 0:
            return float(column.leader().expect("clock").facts["seconds"])
        last = max(np.nextafter(last, np.inf), time.perf_counter())
        for stream in column.streams.values():
            stream.send("clock", seconds=last)
        return last

    return read
