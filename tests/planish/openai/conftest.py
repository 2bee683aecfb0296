"""A small model that is served without HTTP: every request is answered by the definition."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from planish.openai.answer import Answer, Job
from planish.openai.chat import read_chat
from planish.openai.completions import read_completion
from planish.openai.errors import RequestRefused
from planish.openai.served import Served
from planish.reference.engine import Engine
from planish.reference.files.load import open_checkpoint
from planish.reference.text import chat, template_worker
from planish.reference.text.chat_template import ChatTemplate
from planish.reference.text.requests import Event, OneByOne
from planish.reference.text.tokenizer import load_tokenizer
from tests.models import make_llama

TURNS = (
    "{% for m in messages %}{{ '<s>' if loop.first }}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Api:
    """What a client sees of the model."""

    served: Served
    engine: Engine

    def with_(self, **changes: Any) -> Api:
        return replace(self, served=replace(self.served, **changes))

    def chat(self, content: str = "Hi", **fields: Any) -> Job:
        messages = [{"role": "user", "content": content}]
        return read_chat(body(**{"messages": messages, **fields}), self.served)

    def complete(self, prompt: Any = "Hi", **fields: Any) -> Job:
        return read_completion(body(**{"prompt": prompt, **fields}), self.served)

    def refusal(self, read: Any, **fields: Any) -> RequestRefused:
        with pytest.raises(RequestRefused) as refused:
            read(**fields)
        return refused.value

    def answer(self, job: Job) -> Answer:
        return self.stream(job)[0]

    def whole(self, job: Job) -> dict[str, Any]:
        return self.answer(job).whole()

    def stream(self, job: Job) -> tuple[Answer, list[dict[str, Any]]]:
        """The answer, and the chunks that it was sent in."""
        session, answer, chunks = OneByOne(self.engine.config, self.engine.weights), job.open(), []
        index = {session.submit(request): i for i, request in enumerate(job.requests)}
        while not session.is_idle:
            for event in session.step():
                place = index[event.handle]
                chunks += answer.feed(place, event)
                if answer.is_done(place) and event.finish is None:
                    session.cancel(event.handle)
        assert answer.finished and answer.failure is None
        return answer, [*chunks, *answer.closing()]


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def script(tokens: list[int], size: int = 1, end: int | None = None) -> list[Event]:
    """Events of a model that says these tokens, so many at a time."""
    pieces = [tokens[i : i + size] for i in range(0, len(tokens), size)] or [[]]
    events = [Event(handle=1, tokens=tuple(piece)) for piece in pieces]
    events[-1] = replace(events[-1], end=end, finish="length" if end is None else "stop")
    return events


def served_by(path: Path) -> tuple[Served, Engine]:
    checkpoint = open_checkpoint(path)
    template = ChatTemplate(sources={"default": TURNS}, special_tokens={}, path=Path("model"))
    served = Served(
        name="tiny",
        config=checkpoint.config,
        tokenizer=load_tokenizer(path, checkpoint.config),
        context=checkpoint.config.max_positions,
        created=7,
        fingerprint="fp_1",
        template=template,
    )
    return served, Engine(checkpoint)


@pytest.fixture(autouse=True)
def rendered_here(monkeypatch):
    """Templates are rendered in this process, as the worker does in its own."""

    def start(content, path):
        return template_worker.answer(json.loads(content))

    monkeypatch.setattr(chat, "_ask", start)


@pytest.fixture(scope="session")
def api(tmp_path_factory) -> Api:
    """One token per byte, 128 positions, random weights."""
    served, engine = served_by(make_llama(tmp_path_factory.mktemp("served")))
    return Api(served=served, engine=engine)
