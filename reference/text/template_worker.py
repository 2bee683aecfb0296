"""Render one chat template in a process that may neither hang nor fill the memory.

A template comes with a model, and a hundred bytes of it can loop for a year: three nested range()
do. So renderer.py runs this file as a program, which imports nothing of planish and forks a child
for each template. A message is 8 bytes of its length, and JSON:

    stdin   {"template", "variables", "now", "limits"}
    stdout  {"text"}, or {"refusal"} for the template's raise_exception, or {"problem"}, or
            {"killed"}, a signal's number, if the child used up its limits

The environment is the one of transformers: jinja2's immutable sandbox, trim_blocks, lstrip_blocks,
break and continue, {% generation %}, a tojson that leaves HTML as it is, raise_exception and
strftime_now.

Source: https://huggingface.co/docs/transformers/chat_templating_writing
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

LARGEST_OUTPUT = 2**24  # characters


class RefusalError(Exception):
    """The template called raise_exception: it does not take this conversation."""


class GenerationTag(Extension):
    """{% generation %} ... {% endgeneration %}, which marks what a model writes: shown as it is."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as an attribute of instances)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def render(template: str, variables: Mapping[str, Any], now: datetime | None = None) -> str:
    """The text of a template; `now` is the time of strftime_now, by default the present.

    Raises RefusalError for raise_exception, and jinja2's or Python's error for anything else.
    """
    pieces, size = [], 0
    for piece in make_environment(now).from_string(template).generate(**variables):
        size += len(piece)
        if size > LARGEST_OUTPUT:
            raise ValueError(f"more than {LARGEST_OUTPUT} characters")
        pieces.append(piece)
    return "".join(pieces)


def make_environment(now: datetime | None = None) -> ImmutableSandboxedEnvironment:
    """The sandbox, with the filter and the functions that templates expect."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", GenerationTag]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: (now or datetime.now()).strftime(form)
    return environment


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without jinja2's HTML escapes: the model reads it, no browser."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def refuse(message: object) -> None:
    raise RefusalError(str(message))


def answer(request: Mapping[str, Any]) -> dict[str, str]:
    """The object of stdout for the object of stdin."""
    now = request.get("now")
    try:
        text = render(
            request["template"], request["variables"], now and datetime.fromisoformat(now)
        )
    except RefusalError as refusal:
        return {"refusal": str(refusal)}
    except MemoryError:
        return {"problem": "it needs too much memory"}
    except TemplateSyntaxError as problem:
        return {"problem": f"line {problem.lineno}: {problem.message}"}
    except TemplateError as problem:
        return {"problem": problem.message or type(problem).__name__}
    except Exception as problem:  # the template's code may raise anything
        return {"problem": f"{type(problem).__name__}: {problem}"}
    return {"text": text}


def main() -> None:
    """Answer requests until stdin ends."""
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while size := source.read(8):
        content = answer_apart(source.read(int.from_bytes(size, "big")))
        target.write(len(content).to_bytes(8, "big") + content)
        target.flush()


def answer_apart(content: bytes) -> bytes:
    """The answer to a request, computed by a child that its limits may kill."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        answer_limited(content, writing)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        found = pipe.read()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return json.dumps({"killed": os.WTERMSIG(status)}).encode()
    return found or json.dumps({"problem": "it needs too much memory"}).encode()


def answer_limited(content: bytes, target: int) -> None:
    """Set the limits, render, and write the answer; nothing if there is no memory even for that."""
    try:
        request = json.loads(content)
        seconds, size = request["limits"]
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        with os.fdopen(target, "wb") as pipe:
            pipe.write(json.dumps(answer(request)).encode())
    except MemoryError:
        pass


if __name__ == "__main__":
    main()
