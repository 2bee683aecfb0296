"""Processes of several stages as threads of one process, for tests."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from planish.fast.parallel.stages import Results, Stage
from planish.fast.parallel.streams import Column, Stream
from planish.fast.session.placing import OneDevice


def connected(stages: int) -> list[Column]:
    """The streams of each of some processes, a stage each."""
    streams: list[dict[int, Stream]] = [{} for _ in range(stages)]
    for a, b in itertools.combinations(range(stages), 2):
        server = socket.create_server(("127.0.0.1", 0))
        with server:
            near = socket.create_connection(server.getsockname())
            far = server.accept()[0]
        streams[a][b] = Stream(near, f"process {b} of {stages}")
        streams[b][a] = Stream(far, f"process {a} of {stages}")
    return [
        Column(process=i, stages=stages, parts=1, streams=found) for i, found in enumerate(streams)
    ]


def staged(column: Column) -> Stage:
    """The placement of a stage on this process's CPU."""
    return Stage(OneDevice(), column, Results(column))


def run_all(calls: list[Callable[[], Any]]) -> list[Any]:
    """What each call gives, all at the same time."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [each.result(timeout=300) for each in [pool.submit(call) for call in calls]]


def close_all(columns: list[Column]) -> None:
    """End the streams."""
    for column in columns:
        for stream in column.streams.values():
            stream.connection.shutdown(socket.SHUT_RDWR)
    for column in columns:
        for stream in column.streams.values():
            stream.close()
