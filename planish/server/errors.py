"""Answers that are errors, all in OpenAI's form."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from planish.openai.errors import error_body


class Refused(Exception):  # noqa: N818  (what happened to the request, no fault)
    """A request that is answered with an error: 4xx, or 5xx while nothing can be answered."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """The error as JSON."""
        return encode(error_body(self.status, self.message, param=self.param, code=self.code))

    def response(self) -> Response:
        kind = "application/json"
        return Response(self.body(), self.status, media_type=kind, headers=self.headers)


async def refuse_route(request: Request, problem: Exception) -> Response:
    """404 and 405 of the router."""
    assert isinstance(problem, HTTPException)
    words = {
        404: f"{request.method} {request.url.path}: there is no such endpoint",
        405: f"{request.url.path} is not for {request.method}",
    }
    message = words.get(problem.status_code, str(problem.detail))
    return Refused(problem.status_code, message, headers=problem.headers).response()


def encode(value: object) -> bytes:
    """JSON in UTF-8, without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
