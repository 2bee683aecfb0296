"""A session on several processes: process 0 schedules, the others run the same programs.

    process 0      Batching, whose PagedModel sends every program's name and arrays
    the others     follow: the same programs over their own weights and pages

Requests, pages, sampling and text are on process 0 only, so what it decides need not be decided
alike elsewhere, and its answers have one process's bits.
"""

from __future__ import annotations

from typing import Any

from planish.fast.parallel.streams import Arrays, Column
from planish.fast.session.engine import Engine
from planish.fast.session.exactness import why_alone
from planish.fast.session.paged import PagedModel
from planish.reference.errors import PeerError


class Followers:
    """The other processes, as process 0 sees them."""

    def __init__(self, column: Column):
        self.streams = list(column.streams.values())

    def why_alone(self) -> str:
        """Why the layers of one of them allow one request at a time only; empty if they do not.

        Call it once."""
        found = [str(stream.expect("alone").facts["why"]) for stream in self.streams]
        return next(filter(None, found), "")

    def lead(self, name: str, arrays: Arrays, /, **facts: Any) -> None:
        """Let all run a program of PagedModel.follow."""
        for stream in self.streams:
            stream.send(name, arrays, **facts)

    def end(self) -> None:
        """Let all end."""
        self.lead("end", {})


def follow(engine: Engine, column: Column) -> None:
    """Run what process 0 says until it says that it ends; PeerEndedError if it dies."""
    leader, model = column.leader(), None
    leader.send("alone", why=why_alone(engine.weights, engine.config))
    while (message := leader.receive()).kind != "end":
        if message.kind == "open":
            model = PagedModel(engine, **message.facts)
        elif model is not None:
            model.follow(message.kind, message.arrays, **message.facts)
        else:
            raise PeerError(f"{leader.name} sends {message.kind} before it opens a session")
