"""The endpoints: each reads a body that the guards let pass, and writes one answer.

GET   / /health /metrics /v1/models /v1/models/{id} /tokenizer_info
POST  /v1/chat/completions /v1/completions /tokenize /detokenize /apply-template
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from planish.openai import tokens
from planish.openai.answer import Job
from planish.openai.chat import read_chat
from planish.openai.completions import read_completion
from planish.openai.served import Served
from planish.server.answering import answer
from planish.server.errors import Refused, encode
from planish.server.page import show_page
from planish.server.service import Service

Read = Callable[[bytes, Served], Job]
Convert = Callable[[bytes, Served], dict[str, Any]]
Look = Callable[[Service, Scope], Response]


def routes(service: Service) -> list[BaseRoute]:
    """All endpoints of a service."""
    jobs: dict[str, Read] = {
        "/v1/chat/completions": read_chat,
        "/v1/completions": read_completion,
    }
    conversions: dict[str, Convert] = {
        "/tokenize": tokens.tokenize,
        "/detokenize": tokens.detokenize,
        "/apply-template": tokens.apply_template,
    }
    looks: dict[str, Look] = {
        "/": lambda *_: show_page(),
        "/health": show_health,
        "/metrics": show_metrics,
        "/v1/models": list_models,
        "/v1/models/{name:path}": show_model,
        "/tokenizer_info": show_tokenizer,
    }
    found: list[BaseRoute] = []
    found += [post(path, Answering(service, read)) for path, read in jobs.items()]
    found += [post(path, Converting(service, convert)) for path, convert in conversions.items()]
    found += [Route(path, Looking(service, look), methods=["GET"]) for path, look in looks.items()]
    return found


def post(path: str, endpoint: Any) -> Route:
    return Route(path, endpoint, methods=["POST"])


@dataclass(frozen=True)
class Answering:
    """Text from the model."""

    service: Service
    read: Read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        served = self.service.model()
        job = await self.service.read(self.read, scope["planish.body"], served)
        await answer(self.service, job, scope, receive, send)


@dataclass(frozen=True)
class Converting:
    """Between texts and tokens."""

    service: Service
    convert: Convert

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        served, body = self.service.model(), scope["planish.body"]
        written = await self.service.convert(lambda: encode(self.convert(body, served)))
        await Response(written, media_type="application/json")(scope, receive, send)


@dataclass(frozen=True)
class Looking:
    """What takes no time to say."""

    service: Service
    look: Look

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.look(self.service, scope)(scope, receive, send)


def show_health(service: Service, _: Scope) -> Response:
    """200 once requests are answered, 503 while they are not."""
    health = service.health
    return as_json({"status": health}, 200 if health == "ok" else 503)


def show_metrics(service: Service, _: Scope) -> Response:
    if not service.settings.metrics:
        raise Refused(404, "metrics are not served; see --metrics")
    return Response(service.metrics.write(), media_type="text/plain; version=0.0.4")


def list_models(service: Service, _: Scope) -> Response:
    return as_json({"object": "list", "data": [service.model().model_object()]})


def show_model(service: Service, scope: Scope) -> Response:
    served = service.model()
    served.check_model(scope["path_params"]["name"])
    return as_json(served.model_object())


def show_tokenizer(service: Service, _: Scope) -> Response:
    return as_json(tokens.tokenizer_info(service.model()))


def as_json(value: object, status: int = 200) -> Response:
    return Response(encode(value), status, media_type="application/json")
