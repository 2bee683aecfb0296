"""The middlewares, plain ASGI, since starlette's base class breaks streams and disconnects.

What passes them all has a Host that is ours, a known key if keys are set, and a body that was read
whole: scope["planish.body"]. scope["planish.key"] is the key, as bytes.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from planish.openai.errors import RequestRefused
from planish.reference.errors import LOGGER
from planish.server.errors import Refused
from planish.server.runner import locate
from planish.server.settings import Settings

PUBLIC = frozenset({"/", "/health"})  # paths for which no key is asked
DRAINED_SECONDS = 5.0  # a body that is too large is read so long, so that its sender hears why
GONE = 499  # in the log: the client left before its answer


class ClientLeftError(Exception):
    """The connection closed before the body was read or the answer written."""


class Errors:
    """Everything that is raised becomes an answer, or ends one that has begun."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except ClientLeftError:
            scope["planish.status"] = GONE
            cut_off(scope)
        except Exception as problem:
            refusal = as_refusal(problem)
            if begun:
                raise
            await refusal.response()(scope, receive, send)


def cut_off(scope: Scope) -> None:
    """Close the connection without waiting until its client has read all."""
    abort = scope.get("state", {}).get("abort")
    if abort is not None:
        abort()


def as_refusal(problem: Exception) -> Refused:
    """What an exception is answered with; an unforeseen one is logged."""
    if isinstance(problem, Refused):
        return problem
    if isinstance(problem, RequestRefused):
        return Refused(problem.status, str(problem), param=problem.param, code=problem.code)
    LOGGER.error("%s", locate(problem))
    return Refused(500, "internal error", headers={"x-should-retry": "false"})


class HostCheck:
    """Refuses the Host of another site, which a browser sends after DNS rebinding.

    Addresses and localhost are always ours, since no name resolves to them. Once a key is asked
    for, a foreign page cannot know it, and all names are accepted unless --allowed_hosts says.
    """

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app, self.names = app, frozenset(map(str.lower, settings.allowed_hosts))
        self.checks = bool(settings.allowed_hosts) or not settings.keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host")
        if self.checks and host is not None and not is_ours(host, self.names):
            problem = f"Host {host[:100]!r} is not served here; see --allowed_hosts"
            raise Refused(403, problem, code="host_not_allowed")
        await self.app(scope, receive, send)


def is_ours(host: str, names: frozenset[str]) -> bool:
    """Whether a Host header names an address, localhost or one of `names`."""
    name = host.lower()
    if not name.endswith("]"):  # [::1] has no port
        name = name.rpartition(":")[0] or name
    if name in names or name == "localhost":
        return True
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


class CrossOrigin:
    """Permits pages of --allowed_origins to call; without the flag no page may read an answer."""

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app, self.origins = app, settings.allowed_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is None or not ({origin, "*"} & set(self.origins)):
            await self.app(scope, receive, send)
            return
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await preflight(origin, headers)(scope, receive, send)
            return

        async def permitting(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered = MutableHeaders(scope=message)
                answered["access-control-allow-origin"] = origin
                answered.add_vary_header("Origin")
            await send(message)

        await self.app(scope, receive, permitting)


def preflight(origin: str, headers: Headers) -> Response:
    """What a browser asks before a call; there are no credentials but the API key."""
    asked = headers.get("access-control-request-headers", "authorization, content-type")
    permitted = {
        "access-control-allow-origin": origin,
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": asked,
        "access-control-max-age": "600",
        "vary": "Origin",
    }
    return Response(status_code=204, headers=permitted)


class KeyCheck:
    """Asks for a key if any is set."""

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app, self.keys = app, settings.keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["planish.key"] = b""
        if self.keys and scope["path"] not in PUBLIC:
            given = dict(scope["headers"]).get(b"authorization", b"")
            scheme, _, key = given.partition(b" ")
            found = find_key(key.strip(), self.keys) if scheme.lower() == b"bearer" else None
            if found is None:
                words = "wrong API key" if given else "an API key is needed"
                problem = f"{words}: Authorization: Bearer KEY"
                headers = {"www-authenticate": "Bearer"}
                raise Refused(401, problem, code="invalid_api_key", headers=headers)
            scope["planish.key"] = found
        await self.app(scope, receive, send)


def find_key(given: bytes, keys: Sequence[bytes]) -> bytes | None:
    """The key that was given; the time says neither which nor how much of it is right."""
    found = None
    for key in keys:
        if hmac.compare_digest(given, key):
            found = key
    return found


class Body:
    """Reads the body of a POST: JSON by its type, at most max_body bytes, before it is parsed."""

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app, self.most, self.seconds = app, settings.max_body, settings.timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            self.check_type(Headers(scope=scope))
            try:
                async with asyncio.timeout(self.seconds):
                    scope["planish.body"] = await self.read(scope, receive)
            except TimeoutError:
                problem = f"the body did not arrive within {self.seconds:g} s"
                raise Refused(408, problem, headers={"connection": "close"}) from None
        await self.app(scope, receive, send)

    def check_type(self, headers: Headers) -> None:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            problem = f"Content-Type must be application/json, not {kind[:100]!r}"
            raise Refused(415, problem)
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "Content-Encoding is not supported: send the body as it is")

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body; Refused if it is too large, as its Content-Length may say."""
        headers = Headers(scope=scope)
        if int(headers.get("content-length", "0")) > self.most:
            if "expect" not in headers:  # otherwise the client waits for our word
                await drain(receive)
            raise self.too_large()
        parts, size, more = list[bytes](), 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeftError
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > self.most:
                parts.clear()
                if more:
                    await drain(receive)
                raise self.too_large()
        return b"".join(parts)

    def too_large(self) -> Refused:
        problem = f"the body has more than {self.most} bytes; see --max_body"
        return Refused(413, problem, headers={"connection": "close"})


async def drain(receive: Receive) -> None:
    """Drop what a client still sends: it reads the answer only once it has sent all."""
    try:
        async with asyncio.timeout(DRAINED_SECONDS):
            while (await receive()).get("more_body", False):
                pass
    except TimeoutError:
        return
