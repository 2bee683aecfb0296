"""A file of requests and the lines of its answers, in the form of OpenAI's batches.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": ...}}
    {"custom_id": "b", "prompt": "Once", "max_tokens": 5}        the body on the line itself

    {"id": ..., "custom_id": "a", "response": {"status_code": 200, "body": {...}}, "error": null}

A session answers them as a server would, several at the same time; each line is written when its
answer is complete. A request that is refused has a line with the refusal.

Source: https://platform.openai.com/docs/guides/batch
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planish.openai.answer import Answer
from planish.openai.bodies import refuse
from planish.openai.chat import read_chat
from planish.openai.completions import read_completion
from planish.openai.errors import error_body, refusal_of
from planish.openai.sampling import ANY_SEED
from planish.openai.served import Served
from planish.records import read_objects
from planish.reference.errors import PlanishError, PromptError
from planish.reference.text.requests import Event, Session

READERS = {"/v1/chat/completions": read_chat, "/v1/completions": read_completion}
FORM = '{"custom_id": "...", "method": "POST", "url": "/v1/chat/completions", "body": {...}}'
AHEAD = 2  # requests that wait beside each that is answered


@dataclass(frozen=True, kw_only=True)
class Line:
    """One request of a file."""

    custom_id: str
    url: str
    body: dict[str, Any]


def read_lines(path: str | Path) -> list[Line]:
    """The requests of a file.

    Raises PromptError, with the number of the line, for one that is none, for a custom_id that
    occurs twice, and for a file without any.
    """
    lines: dict[str, Line] = {}
    for number, fields in read_objects(path, FORM):
        line = read_line(path, number, fields)
        if line.custom_id in lines:
            where = f"line {number}: custom_id"
            found = repr(line.custom_id)
            raise PromptError("occurs twice", path=path, name=where, found=found)
        lines[line.custom_id] = line
    if not lines:
        raise PromptError("contains no request", path=path, expected=FORM)
    return list(lines.values())


def read_line(path: str | Path, number: int, fields: Mapping[str, Any]) -> Line:
    """One line; its custom_id is line-NUMBER if it has none."""
    custom_id = fields.get("custom_id", f"line-{number}")
    if "body" in fields:
        method, url, body = fields.get("method", "POST"), fields.get("url"), fields["body"]
    else:
        body = {key: value for key, value in fields.items() if key != "custom_id"}
        method, url = "POST", "/v1/chat/completions" if "messages" in body else "/v1/completions"
    rules = {
        "custom_id": ("a text", isinstance(custom_id, str) and custom_id != ""),
        "method": ("POST", method == "POST"),
        "url": (" or ".join(READERS), url in tuple(READERS)),
        "body": ("an object", isinstance(body, dict)),
    }
    for name, (expected, good) in rules.items():
        if not good:
            where, found = f"line {number}: {name}", repr(fields.get(name))
            raise PromptError("bad value", path=path, name=where, expected=expected, found=found)
    return Line(custom_id=custom_id, url=str(url), body=body)


@dataclass(kw_only=True)
class Running:
    """A request that the session answers."""

    line: Line
    answer: Answer
    handles: list[int] = field(default_factory=list)


@dataclass(kw_only=True)
class Batch:
    """Requests as a session answers them. seed: of requests without one, with their custom_id."""

    served: Served
    session: Session
    seed: int
    running: dict[int, tuple[Running, int]] = field(default_factory=dict)  # by handle

    def answer(self, lines: Sequence[Line]) -> Iterator[dict[str, Any]]:
        """The lines of the answers, in the order in which they are complete."""
        waiting = deque(lines)
        while waiting or self.running:
            while waiting and len(self.running) < AHEAD * self.session.slots:
                if (refused := self.start(waiting.popleft())) is not None:
                    yield refused
            for event in self.session.step():
                if (done := self.take(event)) is not None:
                    yield done

    def start(self, line: Line) -> dict[str, Any] | None:
        """Give a request to the session; if it is refused, its line."""
        try:
            job = READERS[line.url](seeded_body(line, self.seed), self.served)
            if job.stream:
                raise refuse("stream", "answers of a file are not streamed")
            entry = Running(line=line, answer=job.open())
            self.submit(entry)
        except PlanishError as problem:
            refused = refusal_of(problem, "body")
            return output_line(line, refused.status, refused.body())
        return None

    def submit(self, entry: Running) -> None:
        """Give all requests of a job to the session, or none."""
        try:
            for request in entry.answer.job.requests:
                entry.handles.append(self.session.submit(request))
        except PlanishError:
            self.drop(entry)
            raise
        places = {handle: (entry, index) for index, handle in enumerate(entry.handles)}
        self.running |= places

    def take(self, event: Event) -> dict[str, Any] | None:
        """Use an event; if its request is then answered, the line."""
        if event.handle not in self.running:  # cancelled
            return None
        entry, index = self.running[event.handle]
        entry.answer.feed(index, event)
        if entry.answer.is_done(index):
            del self.running[event.handle]
            if event.finish is None:
                self.session.cancel(event.handle)
        if entry.answer.failure is not None:
            self.drop(entry)
            return output_line(entry.line, 500, error_body(500, entry.answer.failure))
        return output_line(entry.line, 200, entry.answer.whole()) if entry.answer.finished else None

    def drop(self, entry: Running) -> None:
        """Cancel what is left of a request."""
        for handle in entry.handles:
            self.session.cancel(handle)
            self.running.pop(handle, None)


def seeded_body(line: Line, seed: int) -> bytes:
    """A line's body with a seed: its own, or one that follows from the run's and the custom_id, so
    that a run that goes on draws what the first one would have drawn."""
    body = line.body
    if body.get("seed") in (None, ANY_SEED):
        digest = hashlib.sha256(f"{seed} {line.custom_id}".encode()).digest()
        body = {**body, "seed": int.from_bytes(digest[:8], "little")}
    return json.dumps(body).encode()


def output_line(line: Line, status: int, body: dict[str, Any]) -> dict[str, Any]:
    """A line of the output."""
    return {
        "id": f"batch_req_{secrets.token_hex(12)}",
        "custom_id": line.custom_id,
        "response": {"status_code": status, "body": body},
        "error": None,
    }


def left_of(lines: Sequence[Line], answered: Collection[str]) -> list[Line]:
    """The requests without an answer."""
    return [line for line in lines if line.custom_id not in answered]
