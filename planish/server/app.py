"""The routes inside the middlewares, in the order in which a request meets them.

log -> CORS -> errors -> Host -> key -> body -> route
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from planish.server.errors import refuse_route
from planish.server.guards import Body, CrossOrigin, Errors, HostCheck, KeyCheck
from planish.server.log import Log
from planish.server.routes import routes
from planish.server.service import Service


def make_app(service: Service) -> Starlette:
    """The ASGI application of a service."""
    settings = service.settings
    guards = [
        Middleware(Log, service.tell, service.metrics, settings.log_requests),
        Middleware(CrossOrigin, settings),
        Middleware(Errors),
        *(Middleware(guard, settings) for guard in (HostCheck, KeyCheck, Body)),
    ]
    app = Starlette(
        routes=routes(service),
        middleware=guards,
        exception_handlers={HTTPException: refuse_route},
    )
    app.router.redirect_slashes = False
    return app
